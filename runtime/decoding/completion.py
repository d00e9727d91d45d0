"""What a generation yields: pieces while it runs, a completion at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError
from ..sampling.sampler import TokenLogprob
from .loop import FinishReason, Provenance
from .stats import GenerationStats
from .stopping import Interrupt


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


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    Attributes:
        text: what the output adds to the text of the prompt, without special tokens. A space that
            separates the two belongs to it.
        tokens: its tokens, the end-of-sequence token included.
        provenance: who chose each token.
        finish_reason: `eos`, `stop` (a stop text), `length` (max_tokens reached), `capacity` (the
            cache is full), `cancelled` or `timeout`.
        stats: what it cost.
        logprobs: of each token, if the sampling parameters ask for them.
        seed: what draws depended on; None where nothing was drawn.
    """

    text: str
    tokens: list[int]
    provenance: list[Provenance]
    finish_reason: FinishReason
    stats: GenerationStats
    logprobs: Sequence[TokenLogprob] = ()
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the completion as plain values; without the keys that nothing was asked for."""
        value: dict[str, Any] = {
            "text": self.text,
            "tokens": self.tokens,
            "provenance": self.provenance,
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_json(),
        }
        if self.logprobs:
            value["logprobs"] = logprobs_json(self.logprobs)
        if self.seed is not None:
            value["seed"] = self.seed
        return value


def logprobs_json(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return reports on tokens as plain values."""
    return [{"logprob": each.logprob, "top": each.top} for each in logprobs]


class Stream:
    """An iterator over the pieces of one generation; `completion()` sums it up at the end.

    It can be iterated with `for` and, in an event loop, with `async for`: each round then runs in a
    worker thread, and a task that is cancelled ends the generation.
    """

    def __init__(
        self, prompt_tokens: Sequence[int], interrupt: Interrupt, seed: int | None = None
    ) -> None:
        self.prompt_tokens = tuple(prompt_tokens)
        self.seed = seed
        self.stats = GenerationStats(num_prompt_tokens=len(prompt_tokens))
        self.finish_reason: FinishReason | None = None
        self._interrupt = interrupt
        self._pieces: Iterator[Piece] = iter(())
        self._seen: list[Piece] = []

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self._seen.append(piece)
        return piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Iterate without blocking the event loop."""
        import asyncio

        try:
            while (piece := await asyncio.to_thread(next, self, None)) is not None:
                yield piece
        finally:
            self.cancel()  # nobody reads on: a round that runs at this moment is the last

    def cancel(self) -> None:
        """End the generation before its next pass, with what it has; from any thread."""
        self._interrupt.cancel()

    def completion(self) -> Completion:
        """Run to the end, if it is not there yet, and return the whole.

        Raises:
            UsageError: it failed before.
        """
        for _ in self:
            pass
        if self.finish_reason is None:
            raise UsageError("this generation failed or was closed before it ended")
        return Completion(
            text="".join(piece.text for piece in self._seen),
            tokens=[token for piece in self._seen for token in piece.tokens],
            provenance=[who for piece in self._seen for who in piece.provenance],
            finish_reason=self.finish_reason,
            stats=self.stats,
            logprobs=[each for piece in self._seen for each in piece.logprobs],
            seed=self.seed,
        )
