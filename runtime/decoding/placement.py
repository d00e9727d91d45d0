"""Which backend runs the models of a bundle: ONNX Runtime, TensorRT, or one each."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...errors import BackendError, MissingExtraError, UsageError
from ..arbitration.learned import LearnedArbiter
from ..arbitration.protocol import Arbiter
from ..bundle.manifest import ArbiterEntry, Manifest, ModelEntry
from ..bundle.reader import Bundle
from ..engines.onnxruntime import OrtEngine, OrtOptions, import_onnxruntime
from ..engines.protocol import Engine, GraphShape

Backend = Literal["auto", "onnxruntime", "tensorrt", "mixed"]
"""`mixed` runs the target on TensorRT, draft and arbiter on ONNX Runtime: the CPU drafts for the GPU.
`auto` is TensorRT if the bundle was exported for it and TensorRT and a GPU are found, else ONNX
Runtime."""

BACKENDS: tuple[Backend, ...] = get_args(Backend)


@dataclass(frozen=True)
class Placed:
    """The models of a bundle, loaded."""

    target: Engine
    draft: Engine | None
    arbiter: Arbiter | None


def place(bundle: Bundle, backend: Backend, options: OrtOptions | None, *, drafts: bool) -> Placed:
    """Load the models of `bundle`, and build the TensorRT plans that are missing.

    Args:
        bundle: opened, its files checked.
        backend: what they run on.
        options: settings of ONNX Runtime, for the models that run on it.
        drafts: also load draft and arbiter, if the bundle has them.

    Raises:
        BackendError: the backend is missing, finds no GPU, or cannot load or build an engine.
        UsageError: unknown backend, or a bundle whose graphs TensorRT does not read.
        ResourceError: not enough memory, or a plan cannot be written.
    """
    if backend not in BACKENDS:
        raise UsageError(
            f"unknown backend '{backend}'", hint=f"the backends are: {', '.join(BACKENDS)}"
        )
    if backend == "auto":
        backend = "tensorrt" if _has_tensorrt(bundle.manifest) else "onnxruntime"
    models = bundle.manifest.models
    draft, arbiter = (models.draft, models.arbiter) if drafts else (None, None)
    graphs = _Graphs(bundle, options)
    for_target: _Graphs | _Plans = graphs
    for_draft: _Graphs | _Plans = graphs
    if backend == "mixed":
        for_target = _Plans(bundle, ["target"])
    elif backend == "tensorrt":
        roles = ["target", "draft", "arbiter"] if drafts else ["target"]
        for_target = for_draft = _Plans(bundle, roles)
    with ThreadPoolExecutor(1) as beside:
        # ONNX Runtime prepares a graph on one thread, so the draft is ready before the target is.
        begun = None
        if draft is not None and for_draft is graphs:
            import_onnxruntime()  # not in a thread: see `import_text_libraries`
            begun = beside.submit(graphs.engine, "draft", draft)
        target = for_target.engine("target", models.target)
        if begun is not None:
            drafting: Engine | None = begun.result()
        else:
            drafting = None if draft is None else for_draft.engine("draft", draft)
    return Placed(target, drafting, None if arbiter is None else for_draft.arbiter(arbiter))


def graph_shape(manifest: Manifest, entry: ModelEntry) -> GraphShape:
    """Return the sizes of a decoder's graph, for its engine."""
    return GraphShape(
        capacity=manifest.capacity,
        vocab_size=manifest.vocab_size,
        hidden_size=entry.hidden_size,
        summary_top=manifest.summary_top,
        kv_shapes=entry.kv_shapes,
        cache_dtype=entry.cache_dtype,
    )


def decoder_engine(
    graph: Path, manifest: Manifest, role: str, entry: ModelEntry, options: OrtOptions | None = None
) -> OrtEngine:
    """Load the graph of a draft or target into ONNX Runtime."""
    # A draft's rounding changes what is proposed, and never what strict output is.
    even_passes = role == "target" and entry.rounds_by_width
    return OrtEngine(graph, graph_shape(manifest, entry), options, even_passes=even_passes)


class _Graphs:
    """Loads the graphs of a bundle into ONNX Runtime."""

    def __init__(self, bundle: Bundle, options: OrtOptions | None) -> None:
        self._bundle = bundle
        self._options = options

    def engine(self, role: str, entry: ModelEntry) -> Engine:
        """Load draft or target."""
        path, manifest = self._bundle.path(entry.graph), self._bundle.manifest
        return decoder_engine(path, manifest, role, entry, self._options)

    def arbiter(self, entry: ArbiterEntry) -> Arbiter:
        """Load the arbiter."""
        return LearnedArbiter(self._bundle.path(entry.graph))


class _Plans:
    """Loads the plans of `roles` into TensorRT, after building those that this machine lacks."""

    def __init__(self, bundle: Bundle, roles: Collection[str]) -> None:
        from ..tensorrt.api import flavour_of, import_tensorrt, read_gpu, version_of
        from ..tensorrt.bundle_engines import plan_keys
        from ..tensorrt.cuda import Cuda, import_cuda
        from ..tensorrt.devices import device_of
        from ..tensorrt.plan_store import PlanStore

        self._bundle = bundle
        self._roles = roles
        self._manifest = manifest = bundle.manifest
        self._cuda = import_cuda()
        Cuda(self._cuda)  # says so where there is no GPU, before TensorRT is touched
        gpu = read_gpu(self._cuda)
        if gpu is None:
            raise BackendError("CUDA does not describe the GPU of this machine")
        self._trt = trt = import_tensorrt(manifest.engines.flavour if manifest.engines else None)
        self._sm = gpu.sm
        self._device = device_of(gpu, flavour_of(trt), version_of(trt))
        self._prepare(check_hashes=False)
        self._store = PlanStore(bundle.root)
        self._keys = plan_keys(manifest, self._trt, gpu.sm)

    def engine(self, role: str, entry: ModelEntry) -> Engine:
        """Load draft or target."""
        from ..tensorrt.engine import TensorRtEngine

        lowering = self._manifest.lowering
        assert lowering != "gqa", "plan_keys refuses these"
        return TensorRtEngine(
            self._plan(role),
            graph_shape(self._manifest, entry),
            lowering=lowering,
            trt=self._trt,
            cuda=self._cuda,
            what=f"the {role}'s plan",
        )

    def arbiter(self, entry: ArbiterEntry) -> Arbiter:
        """Load the arbiter."""
        from ..tensorrt.arbiter_engine import TensorRtArbiter

        return TensorRtArbiter(self._plan("arbiter"), trt=self._trt, cuda=self._cuda)

    def _prepare(self, *, check_hashes: bool) -> None:
        """Build the plans that are missing, or also those that were damaged since they were built."""
        from ..tensorrt.build_progress import build_bars
        from ..tensorrt.bundle_engines import prepare_engines

        with build_bars() as progress:
            prepare_engines(
                self._bundle.root,
                self._manifest,
                self._trt,
                self._sm,
                progress,
                roles=self._roles,
                device=self._device,
                check_hashes=check_hashes,
            )

    def _plan(self, role: str) -> bytes:
        """Return the bytes of a plan, hashed once, as they are handed to TensorRT."""
        plan = self._store.read(role, self._keys[role])
        if plan is None:
            self._prepare(check_hashes=True)
            plan = self._store.read(role, self._keys[role])
        if plan is None:
            raise BackendError(
                f"the plan of the {role} was changed while it was read",
                hint="another program builds engines in this bundle: try again when it is done",
            )
        return plan


def _has_tensorrt(manifest: Manifest) -> bool:
    """Say whether a bundle was exported for TensorRT and this machine has it, and a GPU."""
    from ..tensorrt.api import find_gpu, import_tensorrt

    if manifest.engines is None:
        return False
    try:
        import_tensorrt(manifest.engines.flavour)
        return find_gpu() is not None
    except MissingExtraError:
        return False
