"""Build, check and measure bundles on the TensorRT and the GPU of this machine, into one report.

Every step is written down when it ends. A run that was interrupted, or ran out of time, goes on where
it stopped: steps that passed on the same machine with the same bundle are not repeated.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...errors import BackendError, CospecError
from ..bundle.manifest import Manifest, ModelEntry
from ..bundle.reader import Bundle
from ..decoding.placement import graph_shape
from ..decoding.session import Session, load
from ..doctor.checks import check_machine
from ..doctor.machine import probe
from ..engines.onnxruntime import OrtEngine, OrtOptions
from ..tensorrt.api import Gpu, flavour_of, import_tensorrt, read_gpu, version_of
from ..tensorrt.bundle_engines import check_version, plan_keys, prepare_engines
from ..tensorrt.cuda import Cuda, import_cuda
from ..tensorrt.devices import device_of
from ..tensorrt.plan_store import PlanStore
from .device_checks import (
    check_chain,
    check_strict,
    compare,
    golden_steps,
    measure,
    play,
    read_goldens,
)
from .kit_report import (
    BundleResult,
    Environment,
    Failure,
    Report,
    Speed,
    Step,
    read_report,
    write_report,
)
from .power import find_reader

PROMPTS = (
    "What is 12 + 30?",
    "Mia has 58 keys and Sam 55 more than Mia. How many in all?",
    "What is 625 times 4?",
    "Name the three largest planets, and say why they are so large.",
    "Write a function that returns the n-th Fibonacci number.",
    "Explain in two sentences how a refrigerator works.",
)
DEFAULT_MINUTES = 20
DEFAULT_TOKENS = 64


@dataclass(frozen=True)
class KitItem:
    """A bundle, and its goldens if another machine computed them."""

    bundle: Path
    goldens: Path | None = None


@dataclass(frozen=True)
class KitOptions:
    """How to run a kit.

    Attributes:
        minutes: no step begins after that time; an earlier run's time does not count.
        max_tokens: of each prompt.
        prompts: that are decoded.
        simulated: label the report as that of a simulation.
    """

    minutes: float = DEFAULT_MINUTES
    max_tokens: int = DEFAULT_TOKENS
    prompts: Sequence[str] = PROMPTS
    simulated: bool = False


def run_kit(
    items: Sequence[KitItem],
    output: Path,
    options: KitOptions,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run all steps of all bundles.

    Args:
        items: bundles, the smallest first.
        output: the report's file; one of an earlier run is continued.
        options: see there.
        progress: called with a line about each step.

    Raises:
        BundleError: a bundle is damaged.
        ResourceError: the report cannot be written.
    """
    started = time.monotonic()
    bundles = {item: Bundle.open(item.bundle) for item in items}
    today = datetime.now(timezone.utc).date().isoformat()
    report = Report(
        report_version=2,
        simulated=options.simulated,
        status="skipped",
        date=today,
        seconds=0.0,
    )
    found = _device()
    if isinstance(found, str):
        report.reason = found
        write_report(report, output)
        return report
    trt, cuda, gpu = found
    power = find_reader()
    report.environment = _environment(trt, cuda, gpu)
    report.power_source = power[0] if power else None
    machine = probe(output.parent)
    report.findings = tuple((f.level, f.topic, f.message) for f in check_machine(machine))
    earlier = _earlier(output, report)
    report.status, report.reason = "failed", "the run was interrupted; start it again to go on"
    for item, bundle in bundles.items():
        run = _BundleRun(item, bundle, trt, gpu, options, started, progress)
        report.bundles[bundle.root.name] = result = run.result
        before = earlier.get(bundle.root.name)
        if before is not None and before.seal == result.seal:
            result.steps = {name: step for name, step in before.steps.items() if step.passed}
            result.speed = dict(before.speed)
        run.save = lambda: _save(report, output, started)
        run.all_steps(power[1] if power else None)
    report.status, report.reason = ("passed" if _passed(report) else "failed"), None
    _save(report, output, started)
    return report


def compute_goldens(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """Return what ONNX Runtime computes of each decoder, from the graphs that plans are built from."""
    return {role: _goldens(bundle, entry) for role, entry in _decoders(bundle.manifest)}


class _BundleRun:
    """The steps of one bundle."""

    def __init__(
        self,
        item: KitItem,
        bundle: Bundle,
        trt: Any,
        gpu: Gpu,
        options: KitOptions,
        started: float,
        progress: Callable[[str], None],
    ) -> None:
        self._item, self._bundle, self._trt, self._gpu = item, bundle, trt, gpu
        self._options, self._started, self._progress = options, started, progress
        self.save: Callable[[], None] = lambda: None
        manifest = bundle.manifest
        kinds = (kept.kind for _, model in _decoders(manifest) for kept in model.kept_weights)
        self.result = BundleResult(
            name=manifest.name,
            seal=manifest.seal or "none",
            lowering=manifest.lowering,
            precision=manifest.precision,
            weights=tuple(dict.fromkeys(kinds)),
            capacity=manifest.capacity,
            status="not run",
        )

    def all_steps(self, power: Callable[[], float] | None) -> None:
        """Run the steps that did not pass before; a failed build or load ends the bundle."""
        result = self.result
        result.reason = self._not_for_this_machine()
        if result.reason is not None:
            self.save()
            return
        opened: list[Session] = []

        def load_engines() -> dict[str, Any]:
            opened.append(load(self._bundle.root, backend="tensorrt", verify=False))
            return {}

        self._step("build", self._build)
        if self._passed("build"):
            self._step("load", load_engines, repeat=True)
        if opened:
            self._checks(opened[0])
            self._step("speed", lambda: self._speed(opened[0], power))
            decoders = {"target": opened[0].caches.target, "draft": opened[0].caches.draft}
            result.cuda_graphs = {
                role: decoder.recording_report()  # type: ignore[attr-defined]
                for role, decoder in decoders.items()
                if decoder is not None
            }
        failed = [step for step in result.steps.values() if not step.passed]
        if failed:
            result.status = "failed"
        elif result.reason is None:
            result.status = "passed"
        self.save()

    def _not_for_this_machine(self) -> str | None:
        """Return why this TensorRT is not the one that the bundle is for, or None."""
        manifest = self._bundle.manifest
        flavour = flavour_of(self._trt)
        if manifest.engines is not None and manifest.engines.flavour != flavour:
            return f"it was exported for {manifest.engines.flavour}, and this is {flavour}"
        try:
            check_version(manifest.lowering, self._trt)
        except BackendError as error:
            return error.message
        return None

    def _checks(self, session: Session) -> None:
        manifest = self._bundle.manifest
        count = max(1, manifest.generation.num_draft_tokens)
        decoders: dict[str, Any] = {"target": session.caches.target, "draft": session.caches.draft}
        for role, entry in _decoders(manifest):
            decoder = decoders[role]
            self._step(f"numerics of the {role}", partial(self._numerics, decoder, role, entry))
            self._step(
                f"chain of the {role}", partial(check_chain, decoder, manifest.vocab_size, count)
            )
        self._step(
            "strict equals target",
            lambda: check_strict(session, self._prompts(session), self._options.max_tokens),
        )

    def _numerics(self, decoder: Any, role: str, entry: ModelEntry) -> dict[str, Any]:
        goldens = self._item.goldens
        golden = read_goldens(goldens, role) if goldens else _goldens(self._bundle, entry)
        manifest = self._bundle.manifest
        found = play(decoder, _widths(manifest), manifest.vocab_size)
        return compare(found, golden, entry.cache_dtype)

    def _build(self) -> dict[str, Any]:
        bundle, trt, gpu = self._bundle, self._trt, self._gpu
        begun: dict[str, float] = {}
        started = time.monotonic()

        def begin(role: str) -> Callable[[float], None]:
            begun[role] = time.monotonic() - started
            self._progress(f"{self.result.name}: building the engine of the {role}")
            return lambda share: None

        device = device_of(gpu, flavour_of(trt), version_of(trt))
        built = prepare_engines(bundle.root, bundle.manifest, trt, gpu.sm, begin, device=device)
        store, sizes = PlanStore(bundle.root), {}
        for role, key in plan_keys(bundle.manifest, trt, gpu.sm).items():
            plan = store.find(role, key)
            sizes[role] = None if plan is None else plan.stat().st_size
        return {"built": built, "plan_bytes": sizes, "begun_at_seconds": begun}

    def _speed(self, session: Session, power: Callable[[], float] | None) -> dict[str, Any]:
        measured = measure(session, self._prompts(session), self._options.max_tokens, power)
        self.result.speed = {mode: Speed(**values) for mode, values in measured.items()}
        return {}

    def _prompts(self, session: Session) -> list[list[int]]:
        texts = self._options.prompts
        as_chat = session.codec.has_chat_template
        return [
            session.encode([{"role": "user", "content": text}] if as_chat else text)
            for text in texts
        ]

    def _passed(self, name: str) -> bool:
        step = self.result.steps.get(name)
        return step is not None and step.passed

    def _step(self, name: str, work: Callable[[], dict[str, Any]], *, repeat: bool = False) -> None:
        """Run a step and write the report, unless it passed before or no time is left."""
        if self._passed(name) and not repeat:
            return
        if time.monotonic() - self._started > 60 * self._options.minutes:
            self.result.reason = (
                f"the {self._options.minutes:g} minutes were used up before the step '{name}'; run the "
                "same command again to go on"
            )
            return
        self._progress(f"{self.result.name}: {name}")
        started = time.monotonic()
        failure, facts, passed = None, {}, False
        try:
            facts = work()
            passed = facts.pop("passed", True)
        except CospecError as error:
            failure = Failure(type(error).__name__, error.message, error.hint)
        seconds = time.monotonic() - started
        self.result.steps[name] = Step(passed=passed, seconds=seconds, facts=facts, failure=failure)
        self.save()


def _device() -> tuple[Any, Any, Gpu] | str:
    """Return (trt, cuda, gpu), or the reason why there is nothing to run on."""
    try:
        cuda = import_cuda()
        Cuda(cuda)
        gpu = read_gpu(cuda)
        trt = import_tensorrt()
    except CospecError as error:
        return error.message
    return (trt, cuda, gpu) if gpu is not None else "CUDA does not describe the GPU"


def _earlier(output: Path, report: Report) -> dict[str, BundleResult]:
    """Return the results of an earlier run on this machine."""
    try:
        earlier = read_report(output)
    except CospecError:
        return {}
    alike = earlier.environment == report.environment and earlier.simulated == report.simulated
    return earlier.bundles if alike else {}


def _save(report: Report, output: Path, started: float) -> None:
    report.seconds = time.monotonic() - started
    write_report(report, output)


def _passed(report: Report) -> bool:
    """Return whether no step failed, and one bundle passed all of its own."""
    states = [bundle.status for bundle in report.bundles.values()]
    return "failed" not in states and "passed" in states


def _decoders(manifest: Manifest) -> list[tuple[str, ModelEntry]]:
    models = manifest.models
    return [("target", models.target), *([("draft", models.draft)] if models.draft else [])]


def _widths(manifest: Manifest) -> list[int]:
    chosen = manifest.generation
    return golden_steps(chosen.num_draft_tokens, chosen.prefill_chunk, manifest.capacity)


def _goldens(bundle: Bundle, entry: ModelEntry) -> dict[str, Any]:
    low_memory = entry.cache_dtype == "float16"
    options = OrtOptions(provider="cpu", low_memory=low_memory)
    engine = OrtEngine(bundle.path(entry.graph), graph_shape(bundle.manifest, entry), options)
    return play(engine.decoder(), _widths(bundle.manifest), bundle.manifest.vocab_size)


def _environment(trt: Any, cuda: Any, gpu: Gpu) -> Environment:
    device = Cuda(cuda)
    release = Path("/etc/nv_tegra_release")
    return Environment(
        gpu=gpu.name,
        sm=gpu.sm,
        memory_bytes=gpu.memory_bytes,
        unified_memory=gpu.unified,
        module=trt.__name__,
        tensorrt=version_of(trt),
        cuda_runtime=int(device.call("cudaRuntimeGetVersion")),
        cuda_driver=int(device.call("cudaDriverGetVersion")),
        jetson=release.read_text().splitlines()[0] if release.exists() else None,
        platform=platform.platform(),
        python=platform.python_version(),
        cospec=__version__,
    )
