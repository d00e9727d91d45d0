"""How fast this machine reads memory, and so how fast it could decode at best.

A decode pass of one token reads every weight once, but the embedding's, of which it gathers one row.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ...runtime.bundle.reader import Bundle

BUFFER_BYTES = 512 << 20
"""A thread's buffer: several times the last-level cache of large processors, all threads together."""

PASSES = 3

_GATHERS = ("Gather", "GatherBlockQuantized")


class ReadSpeed:
    """Measures reading in so many threads; keep it, and ask again between other measurements.

    Of numpy's reductions the maximum is the one that costs the processor least, and it runs without
    the interpreter's lock.
    """

    def __init__(self, threads: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._buffers = [np.ones(buffer_bytes // 4, dtype=np.float32) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)
        self.samples: list[float] = []

    def take(self) -> None:
        """Read all buffers a few times and keep the best, in bytes a second, in `samples`."""
        best = 0.0
        for _ in range(PASSES):
            started = perf_counter()
            list(self._pool.map(np.max, self._buffers))
            seconds = perf_counter() - started
            best = max(best, sum(buffer.nbytes for buffer in self._buffers) / seconds)
        self.samples.append(best)


@dataclass(frozen=True)
class PairBytes:
    """Bytes of weights that one pass reads.

    Attributes:
        target: of the target.
        draft: of the draft.
    """

    target: float
    draft: float


def sizes_of(bundle: Path) -> PairBytes:
    """Return what passes of a bundle's two graphs read; 0 for a draft that is not there."""
    opened = Bundle.open(bundle, verify=False)
    models = opened.manifest.models
    draft = 0 if models.draft is None else streamed_bytes(opened.path(models.draft.graph))
    return PairBytes(streamed_bytes(opened.path(models.target.graph)), draft)


def streamed_bytes(graph: Path) -> int:
    """Return the bytes of weights that a decode pass of an ONNX graph reads in full.

    Weights that are gathered from only, such as an untied embedding, are left out.
    """
    import onnx

    model: Any = onnx.load(graph, load_external_data=False)
    gathered, read = set[str](), set[str]()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            (gathered if node.op_type in _GATHERS and i != 1 else read).add(name)
    total = 0
    for tensor in model.graph.initializer:
        if tensor.name in read:
            total += _bytes_of(tensor)
    return total


def _bytes_of(tensor: Any) -> int:
    import onnx

    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    size = 1
    for dimension in tensor.dims:
        size *= dimension
    bits = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}.get(tensor.data_type)
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    return size * (bits or width) // 8
