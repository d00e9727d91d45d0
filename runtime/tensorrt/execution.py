"""The work of one call of a TensorRT decoder: uploads, passes, downloads.

A `Run` is prepared once for each width and chain length. All its addresses are fixed, so that its
second run is recorded as one CUDA graph, copies included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CospecError
from ..engines.graph_tensors import Tensor
from ..engines.protocol import StepOutput
from .cuda import CudaGraph, DeviceMemory, Stream, pinned
from .plan import Context, Plan, scratch_bytes

_TOKEN_BYTES = 8  # int64


class Buffers:
    """Device memory of one decoder, sized for its widest pass.

    Args:
        plan: the engine's plan, with the tensors of `decoder_tensors`.
        widest: tokens of the widest pass.
        copies: number of caches: one that is written in place, or two that alternate.
        stream: clears them.

    Raises:
        ResourceError: they do not fit the GPU.
    """

    def __init__(self, plan: Plan, widest: int, copies: int, stream: Stream) -> None:
        self.bytes_per_row: dict[str, int] = {}
        self._memory: dict[str, DeviceMemory] = {}
        self.caches: list[dict[str, DeviceMemory]] = [{} for _ in range(copies)]
        for name, tensor in plan.tensors.items():
            item = np.dtype(tensor.dtype).itemsize
            # Zeroed: masked positions are multiplied by zero, which NaN in old bytes would survive.
            if name.startswith("past."):
                for cache in self.caches:
                    size = item * math.prod(tensor.shape)
                    cache[name.removeprefix("past.")] = DeviceMemory(stream, size)
            elif not name.startswith("present."):
                row = item * math.prod(tensor.shape[2:])
                rows = widest if len(tensor.shape) > 1 else 1
                self.bytes_per_row[name] = row
                self._memory[name] = DeviceMemory(stream, row * rows)
        self.scratch = DeviceMemory(stream, scratch_bytes(plan))

    def address(self, name: str, row: int = 0) -> int:
        """Return the address of a tensor, or of its row `row`."""
        return self._memory[name].address + row * self.bytes_per_row[name]

    def addresses(self, turn: int) -> dict[str, int]:
        """Return the address of every tensor in a pass that reads the cache `turn`."""
        past, present = self.caches[turn], self.caches[(turn + 1) % len(self.caches)]
        return {
            **{name: memory.address for name, memory in self._memory.items()},
            **{f"past.{name}": memory.address for name, memory in past.items()},
            **{f"present.{name}": memory.address for name, memory in present.items()},
        }


class Contexts:
    """The execution contexts of one decoder.

    Each width that recurs has a context of its own, because a CUDA graph refers to the state of its
    context (NVIDIA advises one context per graph with shared memory). Other widths, the last chunks
    of prompts, share one context and set its shape each time.
    """

    def __init__(
        self, plan: Plan, widths: list[tuple[int, int]], buffers: Buffers, stream: Stream
    ) -> None:
        self._plan = plan
        self._widths = widths
        self._buffers = buffers
        self._stream = stream
        self._made: dict[tuple[int, int, int], Context] = {}

    def of(self, width: int, turn: int) -> Context:
        """Return a context for a pass of `width` tokens over the cache `turn`."""
        profile = profile_of(self._widths, width)
        assert profile is not None, "the decoder has checked the width"
        key = (profile, width if is_fixed(self._widths, width) else 0, turn)
        context = self._made.get(key)
        if context is None:
            context = Context(self._plan, profile, self._buffers.scratch, self._stream)
            context.bind(self._buffers.addresses(turn))
            self._made[key] = context
        context.reshape({"input_ids": (1, width)})
        return context


def profile_of(widths: list[tuple[int, int]], width: int) -> int | None:
    """Return the narrowest profile that accepts passes of `width`, None if none does."""
    fitting = [i for i, (low, high) in enumerate(widths) if low <= width <= high]
    return min(fitting, key=lambda i: widths[i][1] - widths[i][0], default=None)


def is_fixed(widths: list[tuple[int, int]], width: int) -> bool:
    """Return whether passes of `width` recur: they do not use the widest profile, that of prompts."""
    widest = max(range(len(widths)), key=lambda i: (widths[i][1], -widths[i][0]))
    return profile_of(widths, width) != widest


class Run:
    """The work of one call: a pass over `width` tokens, and `chained` passes that feed on each other.

    Args:
        buffers: the decoder's device memory.
        contexts: the decoder's contexts.
        stream: on which it runs.
        width: tokens of the first pass.
        chained: further passes of one token: the most likely token of the pass before.
        last_rows: return the last row of each pass instead of all rows of the first.
        turn: the cache that the first pass reads.
        outputs: the tensors to copy to the host.
    """

    def __init__(
        self,
        buffers: Buffers,
        contexts: Contexts,
        stream: Stream,
        width: int,
        chained: int,
        *,
        last_rows: bool,
        turn: int,
        outputs: Mapping[str, Tensor],
    ) -> None:
        cuda = stream.cuda
        self._buffers = buffers
        self._contexts = contexts
        self._stream = stream
        self._turn = turn
        self._last_rows = last_rows
        self._widths = [width, *[1] * chained]
        rows = len(self._widths) if last_rows else width
        self.input_ids: NDArray[np.int64] = pinned(cuda, (1, width), np.int64)
        self.lengths: NDArray[np.int64] = pinned(cuda, (len(self._widths),), np.int64)
        self._host = {
            name: pinned(cuda, (rows, *tensor.shape[2:]), tensor.dtype)
            for name, tensor in outputs.items()
        }
        self.output = StepOutput(**self._host)
        self._graph: CudaGraph | None = None
        self._runs = 0
        self.not_recorded: str | None = None

    def set_input(self, tokens: Any, length: int) -> None:
        """Set the input of the next run: `tokens` at position `length` of the cache."""
        self.input_ids[0] = tokens
        self.lengths[0] = length
        self.lengths[1:] = np.arange(length + self._widths[0], length + self.tokens)

    @property
    def tokens(self) -> int:
        """Tokens that a run appends to the cache."""
        return sum(self._widths)

    @property
    def is_recorded(self) -> bool:
        """Whether the next run launches a graph."""
        return self._graph is not None

    def run(self, *, record: bool) -> None:
        """Run and wait for the end: the only host synchronisation of a call.

        Args:
            record: make a graph of it after its first run, in which TensorRT initialises itself.

        Raises:
            CospecError: its results cannot be used.
        """
        if record and self._graph is None and self._runs and self.not_recorded is None:
            self._record()
        try:
            if self._graph is not None:
                self._stream.launch(self._graph)
            else:
                self._enqueue()
        except CospecError:
            self._stream.drain()
            raise
        self._stream.synchronize()
        self._runs += 1

    def _record(self) -> None:
        passes = [self._contexts.of(w, self._turn_of(i)) for i, w in enumerate(self._widths)]
        self.not_recorded = next(filter(None, (p.cannot_be_captured() for p in passes)), None)
        if self.not_recorded is not None:
            return
        try:
            self._graph = self._stream.capture(self._enqueue)
        except CospecError as error:
            self.not_recorded = error.message

    def _enqueue(self) -> None:
        stream, buffers = self._stream, self._buffers
        stream.upload(buffers.address("input_ids"), self.input_ids)
        for i, width in enumerate(self._widths):
            stream.upload(buffers.address("cache_length"), self.lengths[i : i + 1])
            self._contexts.of(width, self._turn_of(i)).enqueue()
            for name, host in self._host.items():
                if self._last_rows:
                    stream.download(host[i : i + 1], buffers.address(name, width - 1))
                else:
                    stream.download(host, buffers.address(name))
            if i + 1 < len(self._widths):
                chosen = buffers.address("token", width - 1)
                stream.move(buffers.address("input_ids"), chosen, _TOKEN_BYTES)

    def _turn_of(self, i: int) -> int:
        return (self._turn + i) % len(self._buffers.caches)
