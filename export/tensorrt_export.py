"""TensorRT at export: plan the memory, check the graphs with NVIDIA's parser and builder, build.

TensorRT builds on the GPU that runs the engine. A host without that GPU exports the graphs and checks
them with TensorRT-RTX, which has the same parser and a builder that needs no GPU. The engines are built
on the device by `cospec-export --build-only` (`build_only.py`) or the first `cospec-run`. Engines of
RTX cards are built at export.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import MissingExtraError
from ..models.checkpoint import Checkpoint
from ..runtime.bundle.files import format_bytes, sha256_of
from ..runtime.bundle.manifest import EnginesEntry, FileEntry, Manifest
from ..runtime.tensorrt.api import import_tensorrt, version_of
from ..runtime.tensorrt.bundle_engines import EngineSpec, build_parsed, engine_specs, parse_spec
from ..runtime.tensorrt.devices import Device, Lowering
from ..runtime.tensorrt.lint import activation_bytes, fused_attention_kernels
from ..runtime.tensorrt.plan_store import PlanStore
from .dropped_inputs import lint_inputs
from .memory import available_memory
from .tensorrt_choice import EngineChoice, Sizes, choose_engines
from .weights.tensorrt_numbers import Choice

BUILD_FACTOR = 6
"""Memory of an ahead-of-time build, in units of the graph's weights: 5 were measured at 1.27 GB."""
BUILD_FIXED_BYTES = 400 << 20
"""Memory of TensorRT-RTX and its compiler for a tiny graph."""

_STAND_IN = {87: 86, 90: 89, 100: 120, 110: 120}
"""For SMs that TensorRT-RTX cannot build for: the nearest one that it can."""


def stand_in(sm: int) -> int:
    """Return the SM that TensorRT-RTX builds for in place of `sm`, or `sm` if it can."""
    return _STAND_IN.get(sm, sm)


class EngineExport:
    """The TensorRT part of an export; `export_bundle` calls its steps.

    Args:
        device: the device of the engines.
        announce: called with lines about memory and choices before the export begins.
        lowering: form of the graphs; None for the one that the device takes.
        weights: how weights are stored; `auto` for the widest that fit the device.

    Attributes:
        choice: form, weights and memory, once chosen.
        checks: by role, what was checked and how; empty without TensorRT-RTX.
    """

    def __init__(
        self,
        device: Device,
        announce: Callable[[list[str]], None] = lambda lines: None,
        lowering: Lowering | None = None,
        weights: Choice | Literal["auto"] = "auto",
    ) -> None:
        self.device = device
        self.checks: dict[str, dict[str, Any]] = {}
        self._announce = announce
        self._lowering = lowering
        self._weights: Choice | Literal["auto"] = weights
        self.choice: EngineChoice | None = None

    @property
    def entry(self) -> EnginesEntry:
        """The manifest's entry."""
        device = self.device
        return EnginesEntry(
            device=device.name, flavour=device.flavour, trt_version=device.trt_version, sm=device.sm
        )

    @property
    def complete(self) -> bool:
        """Whether every engine was built for the device itself."""
        return bool(self.checks) and all(check["plan"] for check in self.checks.values())

    def choose(self, checkpoints: Mapping[str, Checkpoint], sizes: Sizes) -> EngineChoice:
        """Choose form and weights, and announce them with the memory that all engines take.

        Raises:
            ResourceError: the device cannot hold them; names all parts of the sum.
        """
        choice = choose_engines(self.device, checkpoints, sizes, self._lowering, self._weights)
        self.choice = choice
        self._announce([*choice.memory.lines(), *choice.reasons])
        return choice

    def check(self, root: Path, manifest: Manifest, report: Callable[[str], None]) -> None:
        """Parse and build every graph of an unfinished bundle with TensorRT-RTX, if it is installed.

        Engines of an RTX card are kept in the bundle; those of other devices only serve as a check.

        Args:
            root: the folder that is being written.
            manifest: of the bundle, its files not yet listed.
            report: called with the name of each stage.

        Raises:
            GateError: TensorRT rejects a graph, or parses it into another computation.
        """
        trt = _rtx()
        for spec in engine_specs(manifest):
            report(f"{spec.role}: {'building the engine' if trt else 'no TensorRT to check with'}")
            if trt is not None:
                self.checks[spec.role] = self._check_one(trt, root, spec)

    def summary(self, output: Path) -> list[str]:
        """Return lines that say what was checked and what is left to do."""
        lines = [f"{role}: {_describe(check)}" for role, check in self.checks.items()]
        if not self.checks:
            lines = ['TensorRT checked nothing here; it would with: pip install "cospec[rtx]"']
        if self.complete:
            return [*lines, f"Engines for {self.device.name} are in {output}."]
        return [
            *lines,
            f"The engines are built on the device ({self.device.name}): copy {output} there and run "
            f"{shlex.join(['cospec-export', '--build-only', str(output)])}, or cospec-run, which "
            "builds them the first time.",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "device": self.device.name,
            "status": "built" if self.complete else "to be built on the device",
            "lowering": self.choice.lowering if self.choice else None,
            "weights": self.choice.weights if self.choice else None,
            "memory": self.choice.memory.to_json() if self.choice else None,
            "checks": self.checks,
        }

    def _check_one(self, trt: Any, root: Path, spec: EngineSpec) -> dict[str, Any]:
        graph = root / spec.graph
        parsed = parse_spec(trt, graph, spec)
        lint_inputs(trt, parsed)
        checked = {"by": f"TensorRT-RTX {version_of(trt)}", "parsed": True, "plan": False}
        sm = self._buildable_sm()
        short = _missing_memory(graph)
        if short is not None:
            return {**checked, "built_for": None, "not_built": short}
        made = build_parsed(trt, parsed, spec, sm)
        keep = self.device.flavour == "rtx" and self.device.sm == sm
        if keep:
            key = spec.key(_entries(root, graph.parent), trt, sm)
            PlanStore(root).save(spec.role, key, made.plan, made.log.text())
        return {
            **checked,
            "plan": keep,
            "built_for": f"SM{sm}",
            "fused_attention": len(fused_attention_kernels(made.log)),
            "plan_bytes": len(made.plan),
            "activation_bytes": activation_bytes(made.log),
        }

    def _buildable_sm(self) -> int:
        """Return the device's SM, or its replacement for TensorRT-RTX."""
        return stand_in(self.device.sm if self.device.sm is not None else _DEFAULT_SM)


_DEFAULT_SM = 86
"""SM for exports without a device: the oldest with every precision below fp8."""


def _describe(check: dict[str, Any]) -> str:
    if check["built_for"] is None:
        return f"parsed by {check['by']} and linted; not built: {check['not_built']}"
    fused = check["fused_attention"]
    return (
        f"parsed by {check['by']}, linted, built for {check['built_for']} "
        f"({format_bytes(check['plan_bytes'])}, {fused} fused attention kernels)"
    )


def _rtx() -> Any:
    """Return TensorRT-RTX, or None if it is not installed."""
    try:
        return import_tensorrt("rtx")
    except MissingExtraError:
        return None


def _missing_memory(graph: Path) -> str | None:
    weights = sum(file.stat().st_size for file in graph.parent.iterdir())
    needed, free = BUILD_FACTOR * weights + BUILD_FIXED_BYTES, available_memory()
    if needed <= free:
        return None
    return (
        f"a trial build needs {format_bytes(needed)} of memory; {format_bytes(free)} are available"
    )


def _entries(root: Path, folder: Path) -> list[FileEntry]:
    return [
        FileEntry(file.relative_to(root).as_posix(), file.stat().st_size, sha256_of(file))
        for file in sorted(folder.iterdir())
    ]
