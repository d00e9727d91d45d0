"""A *simulated* CUDA: device memory, streams and graphs, in this process and without a GPU.

Half of `simulated_tensorrt.py`, which says what rules it holds the caller to.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

_DEVICE_BASE = 0x10_0000_0000_0000  # far beyond any address of this process
ALIGNMENT = 256

Work = Callable[[], None]


class CudaError(IntEnum):
    """The codes that the simulation can return, under their real names and numbers."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class MemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class DeviceFault(Exception):
    """Work on the device touched memory that is not there."""


@dataclass
class _SimulatedStream:
    pending: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    spoiled: bool = False

    def put(self, work: Work) -> None:
        (self.pending if self.captured is None else self.captured).append(work)


class SimulatedCuda:
    """Stands for the module `cuda.bindings.runtime`.

    Args:
        devices: how many GPUs there are.
        memory: bytes on the device.

    Attributes:
        calls: how often each function was called.
        fail: function name -> the code that it returns instead of working.
        downloaded: bytes copied from the device to the host.
    """

    cudaError_t = CudaError
    cudaMemcpyKind = MemcpyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self, devices: int = 1, memory: int = 1 << 32) -> None:
        self.devices = devices
        self.memory = memory
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, CudaError] = {}
        self._blocks: dict[int, np.ndarray] = {}
        self._host: dict[int, np.ndarray] = {}
        self._next = _DEVICE_BASE
        self._streams: dict[int, _SimulatedStream] = {0: _SimulatedStream()}
        self._graphs: dict[int, list[Work]] = {}
        self.downloaded = 0
        self._lost = False
        self._handles = 0

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def counted(*args: Any) -> Any:
            self.calls[name] += 1
            if name in self.fail:
                if name == "cudaStreamEndCapture":  # whose failure ends the capture all the same
                    value(*args)
                return (self.fail[name], None)
            return value(*args)

        return counted

    # Memory

    def device(self, address: int, size: int) -> np.ndarray:
        """Return the bytes at an address of the device."""
        bases = list(self._blocks)  # in ascending order: addresses are never given out twice
        place = bisect_right(bases, address) - 1
        if place >= 0:
            start, block = address - bases[place], self._blocks[bases[place]]
            if start + size <= len(block):
                return block[start : start + size]
        raise DeviceFault(f"{size} bytes at {address:#x}")

    @property
    def used(self) -> int:
        return sum(len(block) for block in self._blocks.values())

    @property
    def pinned(self) -> int:
        return len(self._host)

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def cudaGetDeviceCount(self) -> Any:
        if not self.devices:
            return CudaError.cudaErrorInsufficientDriver, None
        return CudaError.cudaSuccess, self.devices

    def cudaGetDeviceProperties(self, device: int) -> Any:
        facts = {"name": b"simulated GPU", "major": 8, "minor": 7, "integrated": 1}
        return CudaError.cudaSuccess, SimpleNamespace(**facts, totalGlobalMem=self.memory)

    def cudaRuntimeGetVersion(self) -> Any:
        return CudaError.cudaSuccess, 13000

    def cudaDriverGetVersion(self) -> Any:
        return CudaError.cudaSuccess, 13000

    def cudaGetErrorString(self, error: CudaError) -> Any:
        return CudaError.cudaSuccess, f"simulated {CudaError(error).name}".encode()

    def cudaGetLastError(self) -> Any:
        return (CudaError.cudaSuccess,)

    def cudaMalloc(self, size: int) -> Any:
        self._spoil_captures()
        if self.used + size > self.memory:
            return CudaError.cudaErrorMemoryAllocation, None
        address, self._next = self._next, self._next + (size // ALIGNMENT + 2) * ALIGNMENT
        self._blocks[address] = np.full(size, 0xFF, np.uint8)  # as floats: NaN
        return CudaError.cudaSuccess, address

    def cudaFree(self, address: int) -> Any:
        found = self._blocks.pop(address, None)
        return (CudaError.cudaErrorInvalidValue if found is None else CudaError.cudaSuccess,)

    def cudaMallocHost(self, size: int) -> Any:
        memory = np.full(size, 0xFF, np.uint8)
        self._host[memory.ctypes.data] = memory
        return CudaError.cudaSuccess, memory.ctypes.data

    def cudaFreeHost(self, address: int) -> Any:
        del self._host[address]
        return (CudaError.cudaSuccess,)

    # Streams

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        self._handles += 1
        self._streams[self._handles] = _SimulatedStream()
        return CudaError.cudaSuccess, self._handles

    def cudaStreamDestroy(self, stream: int) -> Any:
        del self._streams[stream]
        return (CudaError.cudaSuccess,)

    def stream(self, handle: int) -> _SimulatedStream:
        """Return a stream by its handle; an unknown one is the caller's mistake."""
        return self._streams[handle]

    def cudaStreamSynchronize(self, handle: int) -> Any:
        stream = self.stream(handle)
        if stream.captured is not None:
            stream.spoiled = True
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        work, stream.pending = stream.pending, []
        try:
            for piece in work:
                if not self._lost:
                    piece()
        except DeviceFault:
            self._lost = True
        return (CudaError.cudaErrorIllegalAddress if self._lost else CudaError.cudaSuccess,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: MemcpyKind, handle: int
    ) -> Any:
        for address, is_device in zip((target, source), _sides(kind), strict=True):
            if is_device != (address >= _DEVICE_BASE):
                return (CudaError.cudaErrorInvalidValue,)
        self.stream(handle).put(lambda: self._copy(target, source, size, kind))
        return (CudaError.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: MemcpyKind,
        handle: int,
    ) -> Any:
        def copy() -> None:
            for row in range(height):
                self._copy(target + row * target_pitch, source + row * source_pitch, width, kind)

        if width > min(target_pitch, source_pitch):
            return (CudaError.cudaErrorInvalidValue,)
        self.stream(handle).put(copy)
        return (CudaError.cudaSuccess,)

    def cudaMemsetAsync(self, target: int, value: int, size: int, handle: int) -> Any:
        def clear() -> None:
            self.device(target, size)[:] = value

        self.stream(handle).put(clear)
        return (CudaError.cudaSuccess,)

    def cudaMemset2DAsync(
        self, target: int, pitch: int, value: int, width: int, height: int, handle: int
    ) -> Any:
        def clear() -> None:
            for row in range(height):
                self.device(target + row * pitch, width)[:] = value

        if width > pitch:
            return (CudaError.cudaErrorInvalidValue,)
        self.stream(handle).put(clear)
        return (CudaError.cudaSuccess,)

    def _copy(self, target: int, source: int, size: int, kind: MemcpyKind) -> None:
        to_device, from_device = _sides(kind)
        data = bytes(self.device(source, size)) if from_device else ctypes.string_at(source, size)
        if to_device:
            self.device(target, size)[:] = np.frombuffer(data, np.uint8)
        else:
            self.downloaded += size
            ctypes.memmove(target, data, size)

    # Graphs

    def cudaStreamBeginCapture(self, handle: int, mode: CaptureMode) -> Any:
        if handle == 0:
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        stream = self.stream(handle)
        stream.captured, stream.spoiled = [], False
        return (CudaError.cudaSuccess,)

    def cudaStreamEndCapture(self, handle: int) -> Any:
        stream = self.stream(handle)
        captured, stream.captured = stream.captured, None
        if captured is None or stream.spoiled:
            return CudaError.cudaErrorStreamCaptureInvalidated, None
        return CudaError.cudaSuccess, self._new_graph(captured)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        return CudaError.cudaSuccess, self._new_graph(self._graphs[graph])

    def cudaGraphLaunch(self, executable: int, handle: int) -> Any:
        for work in self._graphs[executable]:
            self.stream(handle).put(work)
        return (CudaError.cudaSuccess,)

    def cudaGraphDestroy(self, graph: int) -> Any:
        del self._graphs[graph]
        return (CudaError.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        del self._graphs[executable]
        return (CudaError.cudaSuccess,)

    def _new_graph(self, work: list[Work]) -> int:
        self._handles += 1
        self._graphs[self._handles] = work
        return self._handles

    def _spoil_captures(self) -> None:
        for stream in self._streams.values():
            stream.spoiled = stream.spoiled or stream.captured is not None


def _sides(kind: MemcpyKind) -> tuple[bool, bool]:
    """(is the target on the device, is the source)."""
    return kind != MemcpyKind.cudaMemcpyDeviceToHost, kind != MemcpyKind.cudaMemcpyHostToDevice
