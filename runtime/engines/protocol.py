"""The interface of an execution backend.

An `Engine` holds the weights of one model and may serve several decoders. A `Decoder` is one sequence
being decoded: a KV cache and its length. Rolling back is lowering that length: a rejected token's keys
and values stay in the buffer and are overwritten by the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError


@dataclass(frozen=True)
class StepOutput:
    """The result of a forward pass: a row for each of its tokens, or for the last S of them.

    A row is the model's view after its token was fed; the last row is always the last token's.

    The arrays are views of buffers that the next step of the same width overwrites: copy what must
    outlive it. Optional arrays are filled when the decoder was opened with them in `outputs`.

    Attributes:
        token: int64 [S], the most likely next token of each row.
        top_values: float32 [S, T], logits of the T most likely tokens, best first.
        top_ids: int64 [S, T], their ids.
        logsumexp: float32 [S], of the row's logits, in nats.
        entropy: float32 [S], of the row's distribution, in nats.
        next_input_logprob: float32 [S], log-probability of the token fed after each row; the last
            row has no successor and its value means nothing.
        hidden: float32 [S, H], last hidden state.
        logits: float32 [S, V].
    """

    token: NDArray[np.int64]
    top_values: NDArray[np.float32] | None = None
    top_ids: NDArray[np.int64] | None = None
    logsumexp: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    next_input_logprob: NDArray[np.float32] | None = None
    hidden: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None

    def restricted(self, rows: slice | NDArray[np.int64]) -> StepOutput:
        """Return the same view with these rows alone."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        return StepOutput(**{name: a[rows] for name, a in arrays.items() if a is not None})


_ARRAYS = tuple(array.name for array in fields(StepOutput))


@dataclass(frozen=True)
class GraphShape:
    """The sizes of a decoder graph that its buffers are made from.

    Attributes:
        capacity: tokens that the cache holds.
        vocab_size: width of the logits.
        hidden_size: width of the last hidden state.
        summary_top: candidates in a row of `top_values`.
        kv_shapes: (kv_heads, head_dim) of every layer.
        cache_dtype: dtype of keys and values, `float32` or `float16`.
    """

    capacity: int
    vocab_size: int
    hidden_size: int
    summary_top: int
    kv_shapes: tuple[tuple[int, int], ...]
    cache_dtype: str

    @property
    def cache_bytes(self) -> int:
        """Bytes of one cache: keys and values of all layers at full capacity."""
        rows = 2 * self.capacity * sum(heads * dim for heads, dim in self.kv_shapes)
        return rows * np.dtype(self.cache_dtype).itemsize


class Decoder(Protocol):
    """One sequence: a KV cache of fixed capacity and the number of tokens in it."""

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold."""

    @property
    def length(self) -> int:
        """Tokens that the cache holds now."""

    def step(
        self, tokens: Sequence[int] | NDArray[np.int64], rows: int | None = None
    ) -> StepOutput:
        """Feed `tokens` [S] in one pass and append them to the cache.

        Args:
            tokens: what to feed.
            rows: how many of the last rows are wanted; None for all. A backend may return more.

        Raises:
            PromptError: the cache would overflow; nothing was fed.
            BackendError: the backend failed, or produced numbers that are not finite.
        """

    def select(self, outputs: tuple[str, ...]) -> None:
        """Choose what the next steps return, beside `token`; O(1) for a choice made before."""

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on; O(1)."""


@runtime_checkable
class ChainedDecoder(Decoder, Protocol):
    """A decoder that feeds its own choices back without the host in between.

    On a device that saves a wait for each drafted token; a drafter uses it where it is offered.
    """

    def draft(self, tokens: Sequence[int] | NDArray[np.int64], count: int) -> StepOutput:
        """Feed `tokens` [S], then each chosen token but the last: `count` greedy choices, at least 1.

        Returns:
            `count` rows, each the last of its pass, under the rules of `step`. The cache then holds
            S + count - 1 tokens more.

        Raises:
            PromptError: the cache would overflow; nothing was fed.
            BackendError: the backend failed, or produced numbers that are not finite; nothing was fed.
        """


@runtime_checkable
class StoredDecoder(Decoder, Protocol):
    """A decoder whose cache can be taken out and put back, so that it outlives the process."""

    def read_cache(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return copies of (key, value) [1, Hkv, length, D] of each layer."""

    def write_cache(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]], length: int) -> None:
        """Replace the cache by `layers`: (key, value) [1, Hkv, length, D] of each layer."""


@runtime_checkable
class Interruptible(Protocol):
    """A decoder whose passes can be ended from another thread."""

    def interrupt(self) -> None:
        """End the pass that runs, and all until `resume`, with a PassInterruptedError."""

    def resume(self) -> None:
        """Allow passes again."""


class PassInterruptedError(BackendError):
    """A pass was ended by `interrupt`; nothing was fed."""

    def __init__(self) -> None:
        super().__init__("the pass was interrupted")


class Engine(Protocol):
    """The weights of one model, ready to decode."""

    @property
    def capacity(self) -> int:
        """Tokens that a decoder's cache can hold."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    def decoder(self, outputs: tuple[str, ...] = ("token",)) -> Decoder:
        """Open a decoder with an empty cache that returns `outputs` from each step."""
