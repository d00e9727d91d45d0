"""The TensorRT module in use, and the GPU that it would run on.

TensorRT and TensorRT for RTX share one Python API under two names. The module is a parameter
everywhere, never a global, so that both can be used, and tested, in one process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from packaging.version import Version

from ...errors import BackendError, MissingExtraError
from .cuda import import_cuda

Flavour = Literal["tensorrt", "rtx"]

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS: dict[Flavour, str] = {"tensorrt": "trt", "rtx": "rtx"}


@dataclass(frozen=True)
class Gpu:
    """A CUDA device of this machine.

    Attributes:
        name: from the driver.
        sm: compute capability, 86 for 8.6.
        memory_bytes: its whole memory.
        unified: whether the CPU shares that memory, as on a Jetson.
    """

    name: str
    sm: int
    memory_bytes: int
    unified: bool


def import_tensorrt(flavour: Flavour | None = None) -> Any:
    """Import TensorRT; None takes the flavour that is installed, TensorRT itself first.

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
    """Return which of the two a module is."""
    return "rtx" if trt.__name__.startswith("tensorrt_rtx") else "tensorrt"


def version_of(trt: Any) -> str:
    """Return the full version, such as `10.16.1.11`."""
    return str(trt.__version__)


def release(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version, to compare it."""
    found = Version(version)
    return found.major, found.minor


def make_logger(trt: Any, write: Callable[[str, str], None]) -> Any:
    """Return a logger that passes each (severity, text) on; the severity is TensorRT's own name."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            write(severity.name, message)

    return Logger()


def find_gpu() -> Gpu | None:
    """Return the first CUDA device, None without a device or a driver.

    Call this before making a TensorRT `Runtime`: without a driver some versions return one that crashes
    the process when it is used.

    Raises:
        MissingExtraError: cuda-bindings is not installed, so a GPU cannot be found.
    """
    return read_gpu(import_cuda())


def read_gpu(cudart: Any) -> Gpu | None:
    """Return the first CUDA device of `cudart`, the module `cuda.bindings.runtime`."""
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
