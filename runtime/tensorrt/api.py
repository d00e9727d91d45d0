"""The TensorRT module in use, and the GPU that it would run on.

TensorRT and TensorRT for RTX share one Python API under two names. The module is passed on as a
parameter and never a global, so that both can be used, and tested, in one process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import BackendError, MissingExtraError

Flavour = Literal["tensorrt", "rtx"]

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS: dict[Flavour, str] = {"tensorrt": "trt", "rtx": "rtx"}


@dataclass(frozen=True)
class Gpu:
    """A CUDA device of this machine.

    Attributes:
        name: as the driver gives it.
        sm: compute capability, 86 for 8.6.
        memory_bytes: all of its memory.
        unified: whether the CPU lives in the same memory, as on Jetson.
    """

    name: str
    sm: int
    memory_bytes: int
    unified: bool


def import_tensorrt(flavour: Flavour | None = None) -> Any:
    """Import TensorRT; None takes whichever flavour is installed, TensorRT itself first.

    Raises:
        MissingExtraError: it is not installed.
        BackendError: it is installed and cannot be loaded.
    """
    wanted: tuple[Flavour, ...] = (flavour,) if flavour else ("tensorrt", "rtx")
    for choice in wanted:
        try:
            return importlib.import_module(MODULES[choice])
        except ModuleNotFoundError as error:
            if error.name != MODULES[choice]:
                raise _not_loadable(choice, error) from error
        except ImportError as error:  # the bindings without the libraries
            raise _not_loadable(choice, error) from error
    raise MissingExtraError(MODULES[wanted[0]], EXTRAS[wanted[0]], "Building TensorRT engines")


def flavour_of(trt: Any) -> Flavour:
    """Which of the two a module is."""
    return "rtx" if trt.__name__.startswith("tensorrt_rtx") else "tensorrt"


def version_of(trt: Any) -> str:
    """Full version, such as `10.16.1.11`."""
    return str(trt.__version__)


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version, for comparing."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def make_logger(trt: Any, write: Callable[[str, str], None]) -> Any:
    """Return a logger that passes each (severity, text) on; the severity is TensorRT's own name."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            write(severity.name, message)

    return Logger()


def find_gpu() -> Gpu | None:
    """Return the first CUDA device, or None where there is none or no driver.

    Ask this before making a TensorRT `Runtime`: without a driver some versions return one that
    crashes the process when it is used.

    Raises:
        MissingExtraError: cuda-bindings is not installed, so nobody can know.
    """
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "trt", "Looking for a GPU") from error
    return read_gpu(cudart)


def read_gpu(cudart: Any) -> Gpu | None:
    """`find_gpu` with the `cuda.bindings.runtime` module given."""
    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess or not count:
        return None
    status, properties = cudart.cudaGetDeviceProperties(0)
    if status != cudart.cudaError_t.cudaSuccess:
        return None
    name = properties.name
    return Gpu(
        name=name.decode() if isinstance(name, bytes) else str(name),
        sm=properties.major * 10 + properties.minor,
        memory_bytes=int(properties.totalGlobalMem),
        unified=bool(properties.integrated),
    )


def _not_loadable(flavour: Flavour, error: ImportError) -> BackendError:
    return BackendError(
        f"{MODULES[flavour]} is installed but cannot be loaded: {error}",
        hint="its libraries are missing or of another version than its bindings: install it again, "
        "or on a Jetson use the Python of the JetPack",
    )
