"""The engines of a bundle, and building those whose plan is missing or outdated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendError, UsageError
from ..bundle.manifest import FileEntry, Manifest, ModelEntry
from .api import flavour_of, release, version_of
from .builder import BuildRequest, BuiltPlan, ParsedGraph, Progress, build_plan, parse_graph
from .device_memory import bundle_memory, ensure_fits
from .devices import SCATTER_SINCE, Device, Lowering
from .lint import DecoderForm, allow_decomposition, lint_build, lint_network
from .plan_store import PlanKey, PlanStore, flags_of, graph_sha256
from .profiles import Profile, arbiter_profiles, draft_profiles, target_profiles


@dataclass(frozen=True)
class EngineSpec:
    """One engine to build.

    Attributes:
        role: target, draft or arbiter.
        graph: path of the ONNX file inside the bundle.
        profiles: its optimisation profiles.
        form: the expected form of its network; None for the arbiter.
    """

    role: str
    graph: str
    profiles: tuple[Profile, ...]
    form: DecoderForm | None

    def key(self, files: Iterable[FileEntry], trt: Any, sm: int) -> PlanKey:
        """Return the key of this engine's plan for a TensorRT and an SM."""
        return PlanKey(
            graph_sha256=graph_sha256(files, self.graph),
            flavour=flavour_of(trt),
            version=version_of(trt),
            sm=sm,
            flags=flags_of(self.profiles),
        )


def decoder_spec(
    role: str,
    model: ModelEntry,
    lowering: Lowering,
    capacity: int,
    num_draft_tokens: int,
    prefill_chunk: int,
) -> EngineSpec:
    """Return the engine of a draft or target."""
    profiles_of = draft_profiles if role == "draft" else target_profiles
    profiles = profiles_of(num_draft_tokens, prefill_chunk)
    form = DecoderForm(lowering, len(model.kv_shapes), capacity)
    return EngineSpec(role, model.graph, profiles, form)


def arbiter_spec(graph: str, num_draft_tokens: int, capacity: int) -> EngineSpec:
    """Return the engine of the arbiter."""
    return EngineSpec("arbiter", graph, arbiter_profiles(num_draft_tokens, capacity), None)


def engine_specs(manifest: Manifest) -> list[EngineSpec]:
    """Return the engines of a bundle: target, then draft and arbiter if it has them.

    Raises:
        UsageError: its graphs are in the form for ONNX Runtime alone, or its draft's
            vocabulary is trimmed.
    """
    if manifest.lowering == "gqa":
        raise UsageError(
            f"the graphs of {manifest.name} are in the form for ONNX Runtime (gqa), which TensorRT "
            "does not read",
            hint="export the bundle again with --trt",
        )
    models, chosen = manifest.models, manifest.generation
    decoders = [("target", models.target), *([("draft", models.draft)] if models.draft else [])]
    for role, model in decoders:
        if model.kept_tokens is not None:
            raise UsageError(
                f"the vocabulary of the {role} of {manifest.name} was trimmed for ONNX Runtime",
                hint="build engines of the bundle that it was trimmed from",
            )
    specs = [
        decoder_spec(
            role,
            model,
            manifest.lowering,
            manifest.capacity,
            chosen.num_draft_tokens,
            chosen.prefill_chunk,
        )
        for role, model in decoders
    ]
    if models.arbiter is not None:
        specs.append(arbiter_spec(models.arbiter.graph, chosen.num_draft_tokens, manifest.capacity))
    return specs


def plan_keys(manifest: Manifest, trt: Any, sm: int) -> dict[str, PlanKey]:
    """Return the key of every engine of a bundle by role, for `PlanStore.read`."""
    return {spec.role: spec.key(manifest.files, trt, sm) for spec in engine_specs(manifest)}


def prepare_engines(
    root: Path,
    manifest: Manifest,
    trt: Any,
    sm: int,
    begin: Callable[[str], Progress] | None = None,
    *,
    roles: Collection[str] | None = None,
    device: Device | None = None,
    check_hashes: bool = True,
) -> list[str]:
    """Build every engine of a bundle whose plan is missing or does not match.

    Args:
        root: the bundle's folder, its files already checked.
        manifest: of the bundle.
        trt: the TensorRT module.
        sm: compute capability to build for.
        begin: called with the role before each build; returns the progress callback of that build.
        roles: the engines to build, of those that the bundle has; None for all.
        device: what will hold them together. Nothing is built that it has no room for; None builds
            whatever it may be.
        check_hashes: whether a plan must match its hash to be left alone. False is for a caller that
            takes it from `PlanStore.read`, which hashes what it returns: plans are large.

    Returns:
        The roles that were built; the other plans existed.

    Raises:
        UsageError: the bundle's form is not for this TensorRT.
        GateError: TensorRT rejects a graph, or parses it into another computation.
        BackendError: TensorRT cannot build here.
        ResourceError: the device cannot hold the engines, or a plan cannot be written.
    """
    check_version(manifest.lowering, trt)
    specs = [spec for spec in engine_specs(manifest) if roles is None or spec.role in roles]
    store = PlanStore(root)
    built: list[str] = []
    for spec in specs:
        key = spec.key(manifest.files, trt, sm)
        there = store.find if check_hashes else store.holds
        if there(spec.role, key):
            continue
        if device is not None and not built:
            wanted = [spec.role for spec in specs]
            ensure_fits(bundle_memory(manifest, device, wanted), _smaller(wanted))
        store.ensure_writable(key)  # before minutes of work
        progress = begin(spec.role) if begin else None
        made = build_engine(trt, root / spec.graph, spec, sm, store.timing_cache(key), progress)
        store.save(spec.role, key, made.plan, made.log.text())
        if made.timing_cache:
            store.save_timing_cache(key, made.timing_cache)
        built.append(spec.role)
    return built


def _smaller(roles: Collection[str]) -> list[str]:
    mixed = ["the draft on the CPU (--backend mixed)"] if "draft" in roles else []
    return [*mixed, "another export, with a smaller --capacity or smaller models"]


def build_engine(
    trt: Any,
    graph: Path,
    spec: EngineSpec,
    sm: int,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> BuiltPlan:
    """Parse, check, build, and check the builder's log.

    Raises:
        GateError: TensorRT rejects the graph, or parses it into another computation.
        BackendError: TensorRT cannot build here.
    """
    return build_parsed(trt, parse_spec(trt, graph, spec), spec, sm, timing_cache, progress)


def parse_spec(trt: Any, graph: Path, spec: EngineSpec) -> ParsedGraph:
    """Parse and lint the graph of an engine.

    Raises:
        GateError: TensorRT rejects it, or parses it into another computation.
    """
    parsed = parse_graph(trt, graph)
    lint_network(trt, parsed, spec.form)
    allow_decomposition(trt, parsed)
    return parsed


def build_parsed(
    trt: Any,
    parsed: ParsedGraph,
    spec: EngineSpec,
    sm: int,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
) -> BuiltPlan:
    """Build the result of `parse_spec` and check the log; errors as in `build_engine`."""
    request = BuildRequest(spec.profiles, sm, timing_cache)
    made = build_plan(trt, parsed, request, progress)
    lint_build(trt, parsed, len(spec.profiles))
    return made


def check_version(lowering: str, trt: Any) -> None:
    """Refuse graphs that this TensorRT is too old for, as its parser would report that less clearly.

    Raises:
        BackendError: names both versions.
    """
    version = version_of(trt)
    if lowering == "scatter" and flavour_of(trt) == "tensorrt" and release(version) < SCATTER_SINCE:
        raise BackendError(
            f"this bundle's graphs (scatter) need TensorRT {'.'.join(map(str, SCATTER_SINCE))} or "
            f"newer; this is {version}",
            hint="export for this device: cospec-export --trt --device NAME, or --lowering portable",
        )
