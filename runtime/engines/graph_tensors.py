"""The inputs and outputs of a decoder graph: the contract that every backend holds a graph to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .protocol import GraphShape


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph or of a plan.

    Attributes:
        dtype: numpy's name of it.
        shape: -1 for a size that depends on the pass.
        is_input: input or output.
    """

    dtype: str
    shape: tuple[int, ...]
    is_input: bool

    def __str__(self) -> str:
        kind = "input" if self.is_input else "output"
        return f"an {kind} {self.dtype} {list(self.shape)}"


def decoder_outputs(shape: GraphShape) -> dict[str, Tensor]:
    """Return what a pass computes beside the cache; -1 is the number of rows."""
    top = shape.summary_top
    return {
        "logits": Tensor("float32", (1, -1, shape.vocab_size), is_input=False),
        "token": Tensor("int64", (1, -1), is_input=False),
        "top_values": Tensor("float32", (1, -1, top), is_input=False),
        "top_ids": Tensor("int64", (1, -1, top), is_input=False),
        "logsumexp": Tensor("float32", (1, -1), is_input=False),
        "entropy": Tensor("float32", (1, -1), is_input=False),
        "next_input_logprob": Tensor("float32", (1, -1), is_input=False),
        "hidden": Tensor("float32", (1, -1, shape.hidden_size), is_input=False),
    }


def decoder_tensors(shape: GraphShape) -> dict[str, Tensor]:
    """Return every input and output of a decoder; -1 is the width of a pass."""
    tensors = {
        "input_ids": Tensor("int64", (1, -1), is_input=True),
        "cache_length": Tensor("int64", (1,), is_input=True),
        **decoder_outputs(shape),
    }
    for i, (heads, dim) in enumerate(shape.kv_shapes):
        for kind in ("key", "value"):
            size = (1, heads, shape.capacity, dim)
            for name, is_input in (("past", True), ("present", False)):
                tensors[f"{name}.{i}.{kind}"] = Tensor(shape.cache_dtype, size, is_input=is_input)
    return tensors


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Say which tensor of a graph is the first that is not as expected; None if all are."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        wanted, there = expected.get(name), found.get(name)
        if wanted is None or there is None or not _fits(wanted, there):
            return f"'{name}' is {there or 'not there'}, expected {wanted or 'not there'}"
    return None


def _fits(wanted: Tensor, found: Tensor) -> bool:
    return (
        (wanted.dtype, wanted.is_input) == (found.dtype, found.is_input)
        and len(wanted.shape) == len(found.shape)
        # A size that is not known before a pass is -1 on either side.
        and all(w == -1 or f in (w, -1) for w, f in zip(wanted.shape, found.shape, strict=True))
    )
