"""The engine of a GPU: a TensorRT plan, run through cuda-bindings, without torch.

The cache, the logits, and in a chain of draft steps the token for the next step stay on the device.
The host gets the small summary of the rows that it asked for, with one wait per call. A plan that
writes its cache in place has one buffer for it; a plan of the portable form has two, which alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ..engines.graph_tensors import decoder_tensors
from ..engines.protocol import GraphShape, StepOutput
from ..engines.sequence import CachedSequence, ShapedEngine, fetched
from .cuda import Cuda, Stream
from .execution import Buffers, Contexts, Run, is_fixed, profile_of
from .plan import Plan


@dataclass(frozen=True)
class TensorRtOptions:
    """How plans are run.

    Attributes:
        cuda_graphs: record recurring calls as CUDA graphs, which start with one launch.
    """

    cuda_graphs: bool = True


class TensorRtEngine(ShapedEngine):
    """A TensorRT plan of one decoder graph.

    Args:
        plan: the serialised engine. It is executable code: the caller has checked its hash.
        shape: sizes of the graph, from the bundle's manifest.
        lowering: form of the graph's attention: `scatter` writes the cache in place.
        trt: the module `tensorrt` or `tensorrt_rtx`.
        cuda: the module `cuda.bindings.runtime`.
        options: how to run it.
        what: names the plan in errors.

    Raises:
        BackendError: no GPU, TensorRT cannot load the plan, or it is not the plan of this graph.
    """

    def __init__(
        self,
        plan: bytes,
        shape: GraphShape,
        *,
        lowering: Literal["scatter", "portable"],
        trt: Any,
        cuda: Any,
        options: TensorRtOptions | None = None,
        what: str = "the plan",
    ) -> None:
        self.shape = shape
        self.options = options or TensorRtOptions()
        self.cuda = Cuda(cuda)
        self.plan = Plan(plan, trt=trt, cuda=self.cuda, what=what)
        self.plan.expect(decoder_tensors(shape))
        pairs = {f"present.{name}": f"past.{name}" for name in _cache_names(shape)}
        self.in_place = self.plan.is_in_place(pairs, expected=lowering == "scatter")
        self.widths = self.plan.widths("input_ids", axis=1)

    def decoder(self, outputs: tuple[str, ...] = ("token",)) -> TensorRtDecoder:
        """Open a decoder with an empty cache that returns `outputs` from each step."""
        return TensorRtDecoder(self, outputs)


class TensorRtDecoder(CachedSequence):
    """One sequence on a `TensorRtEngine`; see `engines.protocol.ChainedDecoder`.

    Raises:
        ResourceError: cache and buffers do not fit the GPU.
        BackendError: TensorRT or CUDA fail.
    """

    def __init__(self, engine: TensorRtEngine, outputs: tuple[str, ...]) -> None:
        super().__init__(engine.shape)
        self._engine = engine
        self._stream = Stream(engine.cuda)
        widest = max(high for _, high in engine.widths)
        copies = 1 if engine.in_place else 2
        self._buffers = Buffers(engine.plan, widest, copies, self._stream)
        self._contexts = Contexts(engine.plan, engine.widths, self._buffers, self._stream)
        self._runs: dict[tuple[Any, ...], Run] = {}
        self._turn = 0
        self.select(outputs)

    def step(
        self, tokens: Sequence[int] | NDArray[np.int64], rows: int | None = None
    ) -> StepOutput:
        """Feed `tokens` [S] in one pass; see `engines.protocol.Decoder.step`."""
        return self._call(tokens, chained=0, last_rows=False)

    def draft(self, tokens: Sequence[int] | NDArray[np.int64], count: int) -> StepOutput:
        """Choose `count` tokens greedily; see `engines.protocol.ChainedDecoder.draft`."""
        return self._call(tokens, chained=count - 1, last_rows=True)

    def select(self, outputs: tuple[str, ...]) -> None:
        """Choose what the next steps return; see `engines.protocol.Decoder.select`."""
        self._outputs = fetched(outputs)

    def write_cache(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]], length: int) -> None:
        """Replace the cache by `layers`: (key, value) [1, Hkv, length, D] of each layer."""
        dtype = np.dtype(self._shape.cache_dtype)
        for i, pair in enumerate(layers):
            for kind, array in zip(("key", "value"), pair, strict=True):
                heads, dim = self._shape.kv_shapes[i]
                rows = np.ascontiguousarray(array, dtype=dtype).reshape(heads, -1)
                if rows.size:
                    memory = self._buffers.caches[self._turn][f"{i}.{kind}"]
                    pitch = self.capacity * dim * dtype.itemsize
                    self._stream.upload_rows(memory.address, pitch, rows.view(np.uint8))
                    self._stream.synchronize()  # before `rows` goes
        self._length = length

    def recording_report(self) -> dict[str, str]:
        """Return for each recurring call whether it is a CUDA graph, or why not."""
        report = {}
        for (width, chained, _, turn, outputs), run in self._runs.items():
            if self._may_record(width):
                name = f"{width}+{chained} tokens, cache {turn}, {len(outputs)} outputs"
                state = "recorded" if run.is_recorded else run.not_recorded
                report[name] = state or "not run twice"
        return report

    def _call(
        self, tokens: Sequence[int] | NDArray[np.int64], chained: int, *, last_rows: bool
    ) -> StepOutput:
        width = len(tokens)
        self._ensure_room(width + chained)
        key = (width, chained, last_rows, self._turn, self._outputs)
        run = self._runs.get(key) or self._prepare(key)
        run.set_input(tokens, self._length)
        run.run(record=self._may_record(width))
        if not np.isfinite(run.output.logsumexp).all():  # type: ignore[arg-type]
            self._clear_rest()
            raise BackendError(
                f"{self._engine.plan.what} produced numbers that are not finite",
                hint="a value may have overflowed in fp16: export with --precision fp32",
            )
        self._length += run.tokens
        self._turn = (self._turn + 1 + chained) % len(self._buffers.caches)
        return run.output

    def _prepare(self, key: tuple[Any, ...]) -> Run:
        """Prepare and keep the run of one kind of call."""
        width, chained, last_rows, turn, outputs = key
        widths = self._engine.widths
        if profile_of(widths, width) is None or (chained and profile_of(widths, 1) is None):
            ranges = ", ".join(f"{low} to {high}" for low, high in widths)
            raise BackendError(
                f"{self._engine.plan.what} accepts no pass of {width} tokens, only of {ranges}",
                hint="draft fewer tokens per round, or export again with a larger --num-draft-tokens",
            )
        self._runs[key] = run = Run(
            self._buffers,
            self._contexts,
            self._stream,
            width,
            chained,
            last_rows=last_rows,
            turn=turn,
            outputs={name: self._engine.plan.tensors[name] for name in outputs},
        )
        return run

    def _may_record(self, width: int) -> bool:
        return self._engine.options.cuda_graphs and is_fixed(self._engine.widths, width)

    def _clear_rest(self) -> None:
        """Zero the cache after its length: NaN there would reach later steps."""
        item = np.dtype(self._shape.cache_dtype).itemsize
        for cache in self._buffers.caches:
            for name, memory in cache.items():
                heads, dim = self._shape.kv_shapes[int(name.split(".")[0])]
                row = dim * item
                start, rest = self._length * row, (self.capacity - self._length) * row
                if rest:
                    pitch = self.capacity * row
                    self._stream.clear_rows(memory.address + start, pitch, rest, heads)
        self._stream.synchronize()


def _cache_names(shape: GraphShape) -> list[str]:
    return [f"{i}.{kind}" for i in range(len(shape.kv_shapes)) for kind in ("key", "value")]
