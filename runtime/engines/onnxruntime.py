"""ONNX Runtime: the default engine, on a CPU or through the CUDA provider.

The cache lives in one buffer a layer that is bound as input and output, so a step writes it in place.
Each width has its own prepared binding: in the steady state a step allocates nothing and hands no
Python objects to ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, BundleError, MissingExtraError, UsageError
from .graph_tensors import Tensor, decoder_outputs, decoder_tensors, difference
from .host_memory import ensure_memory
from .protocol import GraphShape, PassInterruptedError, StepOutput
from .sequence import CachedSequence, ShapedEngine, fetched

ALWAYS_KEPT, WIDE_KEPT = 16, 4
"""Bindings that are kept: all of narrow passes, and the newest few of wider ones. The last chunk of a
prompt may have any width."""

LOGITS_TO_KEEP = "logits_to_keep"
"""The operand of our graphs that says how many of the last rows get a head. It has a default, every
row, and graphs of older exports are without it."""


SPIN_MICROSECONDS = 20
"""For which a worker thread waits for the next operator before it sleeps: most come sooner, and a pool
that waits longer takes the cores from the other model's, and from other programs; see docs/speed.md."""

BRIEF_SPINNING_SINCE = (1, 26)
"""The version of ONNX Runtime that can limit the wait. Before, threads spin far too long or never."""


@dataclass(frozen=True)
class OrtOptions:
    """How ONNX Runtime executes.

    Attributes:
        threads: worker threads of a pass; None takes the number of physical cores. Draft and target
            have a pool each, which sleeps between passes: two that spin on steal each other's cores.
        shared_pool: one pool for all sessions of the process instead, ONNX Runtime's global one, whose
            threads spin for a while after each pass. Its size stays, and every later session of the
            process must use it, others' too: for programs of one's own, not for libraries inside
            others, on a machine that has nothing else to do. What it gains is in docs/speed.md.
        provider: `cpu`, `cuda`, or `auto` for CUDA where the installed build and the machine have it.
        low_memory: convert fp16 weights in each pass instead of once at load. A CPU computes fp16
            graphs in fp32; by default it keeps all weights twice, in both precisions.
    """

    threads: int | None = None
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    low_memory: bool = False
    shared_pool: bool = False


def import_onnxruntime() -> Any:
    """Import onnxruntime, or say which extra brings it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle") from error
    return onnxruntime


class OrtEngine(ShapedEngine):
    """An ONNX Runtime session over one decoder graph.

    Args:
        graph: path of `model.onnx`; its external data lies beside it.
        shape: sizes of the graph, from the bundle's manifest.
        options: threads and provider.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BackendError: ONNX Runtime cannot load the graph.
        BundleError: its inputs and outputs are not those of `shape`.
        UsageError: `provider="cuda"` without a CUDA build or device; or a pool of threads that does
            not go with what this process has already.
    """

    def __init__(self, graph: Path, shape: GraphShape, options: OrtOptions | None = None) -> None:
        self.graph = graph
        self.shape = shape
        self.options = options or OrtOptions()
        ort = import_onnxruntime()
        providers = _providers(ort, self.options)
        session_options = _session_options(ort, self.options)
        choose_pool(ort, session_options, self.options)
        try:
            self.session = ort.InferenceSession(
                str(graph), sess_options=session_options, providers=providers
            )
        except Exception as error:
            hint = "check the bundle with cospec-verify; if it is intact, update onnxruntime"
            if "use_per_session_threads" in str(error):
                hint = "other code of this process made a shared pool: load with shared_pool=True"
            raise BackendError(
                f"ONNX Runtime {ort.__version__} could not load {graph}: {_first_line(error)}",
                hint=hint,
            ) from error
        self.device = "cuda" if providers[0] == "CUDAExecutionProvider" else "cpu"
        if self.device == "cuda" and "CUDAExecutionProvider" not in self.session.get_providers():
            # ONNX Runtime falls back to the CPU with a log line when CUDA fails to initialise.
            if self.options.provider == "cuda":
                raise BackendError(
                    "ONNX Runtime could not start its CUDA provider and fell back to the CPU",
                    hint="check the CUDA and cuDNN versions that this onnxruntime-gpu asks for",
                )
            self.device = "cpu"
        problem = difference(decoder_tensors(shape), _tensors_of(self.session))
        if problem is not None:
            raise BundleError(
                f"the graph {graph} is not what its bundle's manifest says: {problem}",
                hint="export the bundle again with cospec-export",
            )

    def decoder(self, outputs: tuple[str, ...] = ("token",)) -> OrtDecoder:
        """Open a decoder with an empty cache that returns `outputs` from each step."""
        return OrtDecoder(self, outputs)


class OrtDecoder(CachedSequence):
    """One sequence on an `OrtEngine`; see `engines.protocol.Decoder`."""

    def __init__(self, engine: OrtEngine, outputs: tuple[str, ...]) -> None:
        super().__init__(engine.shape)
        ort = import_onnxruntime()
        self._session = engine.session
        self._device = engine.device
        self._graph = engine.graph
        self._run_options = ort.RunOptions()
        # The default. Where it is missing, ONNX Runtime's Python raises and catches in each pass.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        self._cache_length = np.zeros(1, dtype=np.int64)
        optional = {each.name for each in engine.session.get_overridable_initializers()}
        self._cuts_head = LOGITS_TO_KEEP in optional
        self._by_outputs: dict[tuple[str, ...], dict[tuple[int, int], _Binding]] = {}
        self.select(outputs)
        shape, dtype = engine.shape, np.dtype(engine.shape.cache_dtype)
        ensure_memory(shape.cache_bytes, "the cache of a decoder")
        # Zeroed, because a masked position is multiplied by zero: stray NaN bytes would survive that.
        self._cache = {
            f"{i}.{kind}": ort.OrtValue.ortvalue_from_numpy(
                np.zeros((1, heads, shape.capacity, dim), dtype=dtype), self._device, 0
            )
            for i, (heads, dim) in enumerate(shape.kv_shapes)
            for kind in ("key", "value")
        }

    def step(
        self, tokens: Sequence[int] | NDArray[np.int64], rows: int | None = None
    ) -> StepOutput:
        """Feed `tokens` [S] in one pass; see `engines.protocol.Decoder.step`."""
        width = len(tokens)
        self._ensure_room(width)
        kept = width if rows is None or not self._cuts_head else min(rows, width)
        try:
            binding = self._bindings.get((width, kept)) or self._bind(width, kept)
            binding.tokens[:] = tokens
            self._cache_length[0] = self._length
            self._session.run_with_iobinding(binding.io, self._run_options)
        except Exception as error:
            if self._run_options.terminate:
                raise PassInterruptedError from error
            raise BackendError(f"ONNX Runtime failed in a step: {_first_line(error)}") from error
        if self._device != "cpu":
            binding.fetch()
        if not binding.is_finite():
            self._clear_behind()
            raise BackendError(
                f"the graph {self._graph} produced numbers that are not finite",
                hint="if it is fp16, a value overflowed: export with --precision fp32",
            )
        self._length += width
        return binding.output

    def interrupt(self) -> None:
        """End the pass that runs, and all until `resume`; from any thread."""
        self._run_options.terminate = True

    def resume(self) -> None:
        """Allow passes again."""
        self._run_options.terminate = False

    def select(self, outputs: tuple[str, ...]) -> None:
        """Choose what the next steps return; see `engines.protocol.Decoder.select`."""
        self._outputs = fetched(outputs)
        self._bindings = self._by_outputs.setdefault(self._outputs, {})

    def _clear_behind(self) -> None:
        """Zero what lies behind the cache's length: NaN there would reach later steps."""
        for value in self._cache.values():
            whole = value.numpy().copy()
            whole[:, :, self._length :] = 0
            value.update_inplace(whole)

    def read_cache(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return copies of (key, value) [1, Hkv, length, D] of each layer."""
        kept = {name: value.numpy()[:, :, : self._length] for name, value in self._cache.items()}
        layers = range(len(self._shape.kv_shapes))
        return [(kept[f"{i}.key"].copy(), kept[f"{i}.value"].copy()) for i in layers]

    def write_cache(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]], length: int) -> None:
        """Replace the cache by `layers`: (key, value) [1, Hkv, length, D] of each layer."""
        for i, pair in enumerate(layers):
            for kind, array in zip(("key", "value"), pair, strict=True):
                whole = self._cache[f"{i}.{kind}"].numpy().copy()
                whole[:, :, :length] = array
                self._cache[f"{i}.{kind}"].update_inplace(whole)
        self._length = length

    def _bind(self, width: int, kept: int) -> _Binding:
        """Prepare and keep the binding of passes of one width that keep so many rows."""
        wide = [key for key in self._bindings if key[0] > ALWAYS_KEPT]
        if width > ALWAYS_KEPT and len(wide) >= WIDE_KEPT:
            del self._bindings[wide[0]]
        self._bindings[width, kept] = binding = _Binding(
            self._session, self._shape, width, kept, self._outputs, self._device
        )
        io = binding.io
        fed = {"input_ids": binding.input_ids, "cache_length": self._cache_length}
        if self._cuts_head:
            fed[LOGITS_TO_KEEP] = binding.logits_to_keep
        for name, array in fed.items():
            io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, value in self._cache.items():
            io.bind_ortvalue_input(f"past.{name}", value)
            io.bind_ortvalue_output(f"present.{name}", value)
        return binding


class _Binding:
    """The buffers of a pass of `width` tokens of which the last `kept` rows are wanted."""

    def __init__(
        self,
        session: Any,
        shape: GraphShape,
        width: int,
        kept: int,
        outputs: tuple[str, ...],
        device: str,
    ) -> None:
        tensors = decoder_outputs(shape)
        self.io = session.io_binding()
        self.logits_to_keep = np.array([kept], dtype=np.int64)
        self.input_ids = np.zeros((1, width), dtype=np.int64)
        self.tokens = self.input_ids[0]
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.zeros((1, kept, *tensors[name].shape[2:]), dtype=tensors[name].dtype)
            for name in outputs
        }
        self._logsumexp = self._arrays["logsumexp"][0]
        self._zeros = np.zeros(kept, dtype=np.float32)
        self._device = device
        self._on_device: dict[str, Any] = {}
        for name, array in self._arrays.items():
            if device == "cpu":
                self.io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                value = import_onnxruntime().OrtValue.ortvalue_from_numpy(array, device, 0)
                self._on_device[name] = value
                self.io.bind_ortvalue_output(name, value)
        self.output = StepOutput(**{name: array[0] for name, array in self._arrays.items()})

    def is_finite(self) -> bool:
        """Say whether the rows' logits are usable, which is when their logsumexp is finite."""
        # Zero times what is not finite is NaN; several times faster than asking isfinite of each row.
        return bool(self._zeros.dot(self._logsumexp) == 0)

    def fetch(self) -> None:
        """Copy the outputs from the device into the host buffers."""
        for name, value in self._on_device.items():
            self._arrays[name][...] = value.numpy()


def _tensors_of(session: Any) -> dict[str, Tensor]:
    """Return the inputs and outputs that a graph declares."""
    return {
        value.name: Tensor(
            _DTYPES.get(value.type, value.type),
            tuple(size if isinstance(size, int) else -1 for size in value.shape),
            is_input=is_input,
        )
        for is_input, values in ((True, session.get_inputs()), (False, session.get_outputs()))
        for value in values
    }


_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def _providers(ort: Any, options: OrtOptions) -> list[str]:
    """Return the execution providers to ask for, the preferred one first."""
    available = ort.get_available_providers()
    if options.provider == "cuda" and "CUDAExecutionProvider" not in available:
        raise UsageError(
            "the CUDA provider was asked for, but this onnxruntime is a CPU build",
            hint='pip uninstall onnxruntime && pip install "cospec[gpu]"',
        )
    if options.provider != "cpu" and "CUDAExecutionProvider" in available:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _session_options(ort: Any, options: OrtOptions) -> Any:
    """Set threads so that draft and target never fight over the cores."""
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    if options.low_memory:
        # Constant folding is what turns fp16 weights into lasting fp32 copies; ONNX Runtime 1.31 does
        # it at every level but this one, whatever `disabled_optimizers` says.
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session_options.enable_cpu_mem_arena = False
    if options.threads is not None:
        session_options.intra_op_num_threads = options.threads
    from packaging.version import Version

    session_options.inter_op_num_threads = 1
    briefly = Version(ort.__version__).release >= BRIEF_SPINNING_SINCE
    session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(briefly)))
    if briefly:
        session_options.add_session_config_entry(
            "session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS)
        )
    return session_options


class _SharedPool:
    """What is known of ONNX Runtime's global pool, which a process has once and keeps."""

    joined = False
    threads: int | None = None


def choose_pool(ort: Any, session_options: Any, options: OrtOptions | None = None) -> None:
    """Give a session the pool of threads that it must or is to use.

    Once a process has the shared pool, ONNX Runtime makes no session with a pool of its own.

    Args:
        ort: the onnxruntime module.
        session_options: of the session to make; changed in place.
        options: what was asked for; None takes what the process has.

    Raises:
        UsageError: the process has a shared pool of another size.
    """
    if options is not None and options.shared_pool and not _SharedPool.joined:
        try:
            ort.set_global_thread_pool_sizes(options.threads or 0, 1)
        except Exception as error:
            if options.threads is not None:
                raise UsageError(
                    "this process has a shared pool of threads already, which other code made: "
                    f"{_first_line(error)}",
                    hint="leave the number of threads out to use that pool as it is",
                ) from error
        _SharedPool.joined, _SharedPool.threads = True, options.threads
    wanted = None if options is None else options.threads
    if _SharedPool.joined and wanted not in (None, _SharedPool.threads):
        raise UsageError(
            f"the sessions of this process share {_SharedPool.threads or 'the default number of'} "
            f"threads, but {wanted} were asked for",
            hint="give every session of a process the same number of threads",
        )
    session_options.use_per_session_threads = not _SharedPool.joined
    if _SharedPool.joined:  # sizes of its own would only be warned of
        session_options.intra_op_num_threads = session_options.inter_op_num_threads = 0


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
