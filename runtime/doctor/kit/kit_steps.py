"""The steps of the kit on one bundle: build, load, check and measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import BackendError, CospecError
from ...bundle.manifest import Manifest, ModelEntry
from ...bundle.reader import Bundle
from ...decoding.placement import graph_shape
from ...decoding.session import Session, load
from ...engines.onnxruntime import OrtEngine, OrtOptions
from ...tensorrt.api import Gpu, flavour_of, version_of
from ...tensorrt.bundle_engines import check_version, plan_keys, prepare_engines
from ...tensorrt.devices import device_of
from ...tensorrt.plan_store import PlanStore
from .device_checks import (
    check_chain,
    check_strict,
    compare,
    golden_steps,
    measure,
    play,
    read_goldens,
)
from .kit_report import BundleResult, Failure, Speed, Step

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


class BundleRun:
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
        kinds = (kept.kind for _, model in decoders_of(manifest) for kept in model.kept_weights)
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
        for role, entry in decoders_of(manifest):
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
        golden = read_goldens(goldens, role) if goldens else goldens_of(self._bundle, entry)
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


def compute_goldens(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """Return what ONNX Runtime computes of each decoder, from the graphs that plans are built from."""
    return {role: goldens_of(bundle, entry) for role, entry in decoders_of(bundle.manifest)}


def decoders_of(manifest: Manifest) -> list[tuple[str, ModelEntry]]:
    """Return the decoders of a bundle by role."""
    models = manifest.models
    return [("target", models.target), *([("draft", models.draft)] if models.draft else [])]


def _widths(manifest: Manifest) -> list[int]:
    chosen = manifest.generation
    return golden_steps(chosen.num_draft_tokens, chosen.prefill_chunk, manifest.capacity)


def goldens_of(bundle: Bundle, entry: ModelEntry) -> dict[str, Any]:
    """Return what ONNX Runtime computes of one decoder on the CPU."""
    low_memory = entry.cache_dtype == "float16"
    options = OrtOptions(provider="cpu", low_memory=low_memory)
    engine = OrtEngine(bundle.path(entry.graph), graph_shape(bundle.manifest, entry), options)
    return play(engine.decoder(), _widths(bundle.manifest), bundle.manifest.vocab_size)
