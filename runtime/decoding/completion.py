"""What a generation yields: pieces while it runs, a completion at its end."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, get_args

from ...errors import UsageError
from ..sampling.sampler import TokenLogprob
from .loop import FinishReason, Provenance
from .stats import GenerationStats
from .stopping import Interrupt

KEPT_TOKENS = 1 << 20
"""Tokens that an iterated stream keeps for `completion()`, about 10 bytes each; reported
log-probabilities count as tokens."""

_WHO: tuple[Provenance, ...] = get_args(Provenance)


@dataclass(frozen=True)
class Piece:
    """What one round of a streamed generation added.

    Attributes:
        text: the new text; may be empty while a character is incomplete.
        tokens: the new tokens.
        provenance: who chose each of them.
        logprobs: of each of them, if the sampling parameters ask for them.
    """

    text: str
    tokens: list[int]
    provenance: list[Provenance]
    logprobs: Sequence[TokenLogprob] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the piece as plain values."""
        value = {"text": self.text, "tokens": self.tokens, "provenance": self.provenance}
        return value | ({"logprobs": _plain(self.logprobs)} if self.logprobs else {})


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    Attributes:
        text: what the output adds to the text of the prompt, without special tokens. A space between
            the two belongs to it.
        tokens: its tokens, including the end-of-sequence token.
        provenance: who chose each token.
        finish_reason: `eos`, `stop` (a stop text), `length` (max_tokens reached), `capacity` (the
            cache is full), `cancelled` or `timeout`.
        stats: counters and times.
        logprobs: of each token, if the sampling parameters ask for them.
        seed: the seed of the draws; None if nothing was drawn.
        is_complete: whether the output matches its whole grammar; None without a grammar.
    """

    text: str
    tokens: list[int]
    provenance: list[Provenance]
    finish_reason: FinishReason
    stats: GenerationStats
    logprobs: Sequence[TokenLogprob] = ()
    seed: int | None = None
    is_complete: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the completion as plain values, without log-probabilities and seed if it has none."""
        value = Piece(self.text, self.tokens, self.provenance).to_json()
        value |= {"finish_reason": self.finish_reason, "stats": self.stats.to_json()}
        if self.logprobs:
            value["logprobs"] = _plain(self.logprobs)
        if self.is_complete is not None:
            value["is_complete"] = self.is_complete
        return value if self.seed is None else {**value, "seed": self.seed}


def _plain(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return log-probabilities as plain values."""
    return [{"logprob": each.logprob, "top": each.top} for each in logprobs]


class Stream:
    """An iterator over the pieces of one generation; `completion()` returns the whole at the end.

    It can be iterated with `for` and, in an event loop, with `async for`: each round then runs in a
    worker thread, and a task that is cancelled ends the generation.

    Args:
        prompt_tokens: of the generation.
        interrupt: ends it early.
        seed: of its draws; None if nothing is drawn.
        pieces: begins the generation; called with the stream, whose `stats` and `finish_reason` it
            fills in.
    """

    def __init__(
        self,
        prompt_tokens: Sequence[int],
        interrupt: Interrupt,
        seed: int | None,
        pieces: Callable[[Stream], Iterator[Piece]],
    ) -> None:
        self.prompt_tokens = tuple(prompt_tokens)
        self.seed = seed
        self.stats = GenerationStats(num_prompt_tokens=len(prompt_tokens))
        self.finish_reason: FinishReason | None = None
        self.is_complete: bool | None = None
        self._interrupt = interrupt
        self._seen: _Record | None = _Record()
        self._pieces = pieces(self)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        if self._seen is not None and self._seen.add(piece) > KEPT_TOKENS:
            self._seen = None
        return piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Iterate without blocking the event loop."""
        import asyncio

        try:
            while (piece := await asyncio.to_thread(next, self, None)) is not None:
                yield piece
        finally:
            self.cancel()  # nothing reads on, so a round that is running is the last

    def cancel(self) -> None:
        """End the generation before its next pass and keep what it has; from any thread."""
        self._interrupt.cancel()

    def completion(self) -> Completion:
        """Run to the end, if it is not there yet, and return the whole output.

        Raises:
            UsageError: the generation failed before, or was iterated over more tokens than are kept.
        """
        for piece in self._pieces:
            if self._seen is not None:
                self._seen.add(piece)
        if self.finish_reason is None:
            raise UsageError("this generation failed or was closed before it ended")
        if self._seen is None:
            raise UsageError(
                f"this stream yielded more than {KEPT_TOKENS} tokens and did not keep them",
                hint="collect the pieces as they come, or call generate for the whole output",
            )
        seen = self._seen
        return Completion(
            text=seen.text.getvalue(),
            tokens=seen.tokens.tolist(),
            provenance=[_WHO[who] for who in seen.who],
            finish_reason=self.finish_reason,
            stats=self.stats,
            logprobs=seen.logprobs,
            seed=self.seed,
            is_complete=self.is_complete,
        )


class _Record:
    """The pieces of a stream, in little memory."""

    def __init__(self) -> None:
        self.text = StringIO()
        self.tokens = array("q")
        self.who = bytearray()
        self.logprobs: list[TokenLogprob] = []
        self._size = 0

    def add(self, piece: Piece) -> int:
        """Keep a piece; return the number of tokens and log-probabilities so far."""
        self.text.write(piece.text)
        self.tokens.extend(piece.tokens)
        self.who.extend(map(_WHO.index, piece.provenance))
        self.logprobs.extend(piece.logprobs)
        self._size += len(piece.tokens) + sum(len(each.top) for each in piece.logprobs)
        return self._size
