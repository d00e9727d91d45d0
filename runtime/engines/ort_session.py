"""Sessions of ONNX Runtime: how they execute, on what, and with which threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from ...errors import BackendError, MissingExtraError, UsageError
from .graph_tensors import Tensor

SPIN_MICROSECONDS = 20
"""How long a worker thread spins for the next operator before it sleeps. Most come sooner, and a
pool that spins longer takes the cores from the other model's pool and from other programs; see
docs/speed.md."""

BRIEF_SPINNING_SINCE = (1, 26)
"""First version of ONNX Runtime that can limit the spinning. In older ones threads spin far too long or
not at all."""


@dataclass(frozen=True)
class OrtOptions:
    """How ONNX Runtime executes.

    Attributes:
        threads: worker threads of a forward pass; None takes the number of physical cores. Draft and
            target have a pool each, which sleeps between passes: spinning pools would take each other's
            cores.
        shared_pool: use ONNX Runtime's global pool for all sessions of the process, whose threads spin
            after each pass. Its size cannot change, and every later session of the process must use
            it, those of other code too. For programs of your own on a machine that runs nothing
            else; what it gains is in docs/speed.md.
        provider: `cpu`, `cuda`, or `auto`: CUDA if the installed build and the machine have it.
        low_memory: convert fp16 weights in each pass instead of once at load. A CPU computes fp16
            graphs in fp32, and by default keeps all weights in both precisions.
    """

    threads: int | None = None
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    low_memory: bool = False
    shared_pool: bool = False


def import_onnxruntime() -> Any:
    """Import onnxruntime, which reports to its makers unless it is told not to.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle") from error
    return onnxruntime


def open_session(graph: Path, options: OrtOptions) -> tuple[Any, str]:
    """Return a session over a graph, and the device that it computes on, `cpu` or `cuda`.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BackendError: ONNX Runtime cannot load the graph or start the provider.
        UsageError: `provider="cuda"` without a CUDA build; or threads that do not go with the shared
            pool of this process.
    """
    ort = import_onnxruntime()
    providers = _providers(ort, options)
    session_options = session_options_of(ort, options)
    choose_pool(ort, session_options, options)
    try:
        session = ort.InferenceSession(
            str(graph), sess_options=session_options, providers=providers
        )
    except Exception as error:
        hint = "check the bundle with cospec-verify; if it is intact, update onnxruntime"
        if "use_per_session_threads" in str(error):
            hint = "other code of this process made a shared pool: load with shared_pool=True"
        raise BackendError(
            f"ONNX Runtime {ort.__version__} could not load {graph}: {first_line(error)}", hint=hint
        ) from error
    if providers[0] != _CUDA:
        return session, "cpu"
    # ONNX Runtime falls back to the CPU with a line in its log when CUDA fails to initialise.
    if _CUDA in session.get_providers():
        return session, "cuda"
    if options.provider == "cuda":
        raise BackendError(
            "ONNX Runtime could not start its CUDA provider and fell back to the CPU",
            hint="check the CUDA and cuDNN versions that this onnxruntime-gpu asks for",
        )
    return session, "cpu"


def tensors_of(session: Any) -> dict[str, Tensor]:
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


_CUDA = "CUDAExecutionProvider"
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def _providers(ort: Any, options: OrtOptions) -> list[str]:
    """Return the execution providers to ask for, the preferred one first."""
    available = ort.get_available_providers()
    if options.provider == "cuda" and _CUDA not in available:
        raise UsageError(
            "the CUDA provider was asked for, but this onnxruntime is a CPU build",
            hint='pip uninstall onnxruntime && pip install "cospec[gpu]"',
        )
    if options.provider != "cpu" and _CUDA in available:
        return [_CUDA, "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def session_options_of(ort: Any, options: OrtOptions) -> Any:
    """Return options with which draft and target do not take each other's cores."""
    from packaging.version import Version

    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    if options.low_memory:
        # Constant folding is what turns fp16 weights into lasting fp32 copies; ONNX Runtime 1.31 does
        # it at every level but this one, whatever `disabled_optimizers` says.
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session_options.enable_cpu_mem_arena = False
        # By default all weights are converted before the first product: 15 GB for a model of 8B.
        session_options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if options.threads is not None:
        session_options.intra_op_num_threads = options.threads
    session_options.inter_op_num_threads = 1
    briefly = Version(ort.__version__).release >= BRIEF_SPINNING_SINCE
    session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(briefly)))
    if briefly:
        session_options.add_session_config_entry(
            "session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS)
        )
    return session_options


class _SharedPool:
    """The global pool of ONNX Runtime, of which a process has one for good."""

    joined = False
    threads: int | None = None
    lock = Lock()


def choose_pool(ort: Any, session_options: Any, options: OrtOptions | None = None) -> None:
    """Set the pool of threads of a session: its own, or the process's shared one if there is one.

    Args:
        ort: the onnxruntime module.
        session_options: of the session to make; changed in place.
        options: of the user; None takes the pool that the process has.

    Raises:
        UsageError: the process has a shared pool of another size.
    """
    if options is not None and options.shared_pool:
        with _SharedPool.lock:  # draft and target are loaded at the same time
            _join_shared_pool(ort, options.threads)
    wanted = None if options is None else options.threads
    if _SharedPool.joined and wanted not in (None, _SharedPool.threads):
        raise UsageError(
            f"the sessions of this process share {_SharedPool.threads or 'the default number of'} "
            f"threads, but {wanted} were asked for",
            hint="give every session of a process the same number of threads",
        )
    session_options.use_per_session_threads = not _SharedPool.joined
    if _SharedPool.joined:  # ONNX Runtime warns of other sizes
        session_options.intra_op_num_threads = session_options.inter_op_num_threads = 0


def _join_shared_pool(ort: Any, threads: int | None) -> None:
    """Make the process's shared pool; errors as in `choose_pool`."""
    if _SharedPool.joined:
        return
    try:
        ort.set_global_thread_pool_sizes(threads or 0, 1)
    except Exception as error:
        if threads is not None:
            raise UsageError(
                "this process has a shared pool of threads already, which other code made: "
                f"{first_line(error)}",
                hint="leave the number of threads out to use that pool as it is",
            ) from error
    _SharedPool.joined, _SharedPool.threads = True, threads


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
