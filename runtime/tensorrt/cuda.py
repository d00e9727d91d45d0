"""The part of CUDA that an engine needs: memory of host and device, a stream, captured graphs.

It uses `cuda.bindings.runtime`, whose functions return an error code before their values. The module
is a parameter, so that tests can simulate it.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, CospecError, MissingExtraError, ResourceError

_NO_DEVICE = (
    "install NVIDIA's driver for this GPU, or run on the CPU: cospec-run --backend onnxruntime"
)
_HINTS = {
    "cudaErrorInsufficientDriver": _NO_DEVICE,
    "cudaErrorNoDevice": _NO_DEVICE,
    "cudaErrorMemoryAllocation": "close other programs on the GPU, or export again with a smaller "
    "--capacity",
}
_LOST = (
    "CUDA accepts no more work from this process: start it again. If this happens again, report it "
    "with the versions of TensorRT and the driver"
)


def import_cuda() -> Any:
    """Import `cuda.bindings.runtime`.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "trt", "Running TensorRT engines") from error
    return runtime


class Cuda:
    """The current CUDA device.

    Make it before calling TensorRT: without a driver that ends the process.

    Args:
        runtime: the module `cuda.bindings.runtime`.

    Raises:
        BackendError: there is no driver or no GPU.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        if not self.call("cudaGetDeviceCount"):
            raise BackendError("CUDA finds no GPU", hint=_NO_DEVICE)

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the CUDA runtime and return its value, if it has one.

        Raises:
            ResourceError: the GPU has no more memory.
            BackendError: any other error code.
        """
        error, *values = getattr(self.runtime, name)(*args)
        if int(error):
            raise self._typed(name, error)
        return values[0] if values else None

    def _typed(self, name: str, error: Any) -> CospecError:
        code = self.runtime.cudaError_t(int(error)).name
        _, text = self.runtime.cudaGetErrorString(error)
        message = f"{name} failed: {text.decode() if text else code} ({code})"
        kind = ResourceError if code == "cudaErrorMemoryAllocation" else BackendError
        return kind(message, hint=_HINTS.get(code, _LOST))


def pinned(cuda: Cuda, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return a zeroed array in page-locked host memory, whose copies run asynchronously."""
    count = math.prod(shape)
    size = max(count * np.dtype(dtype).itemsize, 1)
    address = int(cuda.call("cudaMallocHost", size))
    memory = (ctypes.c_byte * size).from_address(address)
    weakref.finalize(memory, cuda.runtime.cudaFreeHost, address)
    array = np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)
    array[...] = 0
    return array


class Stream:
    """A CUDA stream: work runs in order, and `synchronize` waits for it.

    It is not the default stream, on which CUDA cannot capture graphs and TensorRT adds waits.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self.handle = int(self._stream)
        self._kinds = cuda.runtime.cudaMemcpyKind
        weakref.finalize(self, cuda.runtime.cudaStreamDestroy, self._stream)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous host array to `address` on the device, in stream order."""
        self._copy(address, array.ctypes.data, array.nbytes, self._kinds.cudaMemcpyHostToDevice)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from `address` on the device into a contiguous host array, in stream order."""
        self._copy(array.ctypes.data, address, array.nbytes, self._kinds.cudaMemcpyDeviceToHost)

    def move(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes within the device, in stream order."""
        self._copy(target, source, size, self._kinds.cudaMemcpyDeviceToDevice)

    def upload_rows(self, address: int, pitch: int, rows: NDArray[Any]) -> None:
        """Copy each row of `rows` [n, bytes] to the device, `pitch` bytes apart, in stream order."""
        count, width = rows.shape
        self.cuda.call(
            "cudaMemcpy2DAsync",
            *(address, pitch, rows.ctypes.data, width, width, count),
            self._kinds.cudaMemcpyHostToDevice,
            self._stream,
        )

    def clear(self, address: int, size: int) -> None:
        """Zero `size` bytes on the device, in stream order."""
        # Not cudaMemset, which runs on the default stream: ours does not wait for that.
        self.cuda.call("cudaMemsetAsync", address, 0, size, self._stream)

    def clear_rows(self, address: int, pitch: int, width: int, count: int) -> None:
        """Zero `width` bytes in each of `count` rows that are `pitch` bytes apart, in stream order."""
        self.cuda.call("cudaMemset2DAsync", address, pitch, 0, width, count, self._stream)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done.

        Raises:
            BackendError: some of it failed.
        """
        self.cuda.call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Record the work that `work` puts on this stream, without running it.

        Raises:
            CospecError: `work` raised it, or the graph cannot be made. The stream stays usable.
        """
        modes = self.cuda.runtime.cudaStreamCaptureMode
        # Thread-local, so that CUDA calls of other threads do not end the capture.
        mode = modes.cudaStreamCaptureModeThreadLocal
        self.cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
            graph = self.cuda.call("cudaStreamEndCapture", self._stream)
        except BaseException:
            self._abandon_capture()
            raise
        try:
            return CudaGraph(self.cuda, self.cuda.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.cuda.runtime.cudaGraphDestroy(graph)

    def launch(self, graph: CudaGraph) -> None:
        """Run a recorded graph, in stream order."""
        self.cuda.call("cudaGraphLaunch", graph.executable, self._stream)

    def drain(self) -> None:
        """Wait for the work on the stream, after an error that was already reported."""
        with suppress(CospecError):
            self.synchronize()

    def _abandon_capture(self) -> None:
        runtime = self.cuda.runtime
        _, graph = runtime.cudaStreamEndCapture(self._stream)
        if graph is not None and int(graph):
            runtime.cudaGraphDestroy(graph)
        runtime.cudaGetLastError()  # or the next call would report the failed capture again

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self.cuda.call("cudaMemcpyAsync", target, source, size, kind, self._stream)


class DeviceMemory:
    """Memory of the device, zeroed in stream order, and freed with the object.

    Attributes:
        address: its first byte; CUDA aligns it to 256 bytes, as TensorRT requires.
        size: in bytes.
    """

    def __init__(self, stream: Stream, size: int) -> None:
        cuda = stream.cuda
        self.size = max(size, 1)
        self.address = int(cuda.call("cudaMalloc", self.size))
        weakref.finalize(self, cuda.runtime.cudaFree, self.address)
        stream.clear(self.address, self.size)


class CudaGraph:
    """Recorded work that starts with one call; see `Stream.capture`."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self.executable = executable
        weakref.finalize(self, cuda.runtime.cudaGraphExecDestroy, executable)
