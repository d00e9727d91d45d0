"""What a generation yields: pieces while it runs, a completion at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .loop import FinishReason, Provenance
from .stats import GenerationStats


@dataclass(frozen=True)
class Piece:
    """What one round of a streamed generation added.

    Attributes:
        text: the new text; may be empty while a character is incomplete.
        tokens: the new tokens.
        provenance: who chose each of them.
    """

    text: str
    tokens: list[int]
    provenance: list[Provenance]


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    Attributes:
        text: what the output adds to the text of the prompt, without special tokens. A space that
            separates the two belongs to it.
        tokens: its tokens, the end-of-sequence token included.
        provenance: who chose each token.
        finish_reason: `eos`, `length` (max_tokens reached) or `capacity` (the cache is full).
        stats: what it cost.
    """

    text: str
    tokens: list[int]
    provenance: list[Provenance]
    finish_reason: FinishReason
    stats: GenerationStats

    def to_json(self) -> dict[str, Any]:
        """Return the completion as plain values."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "provenance": self.provenance,
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_json(),
        }


class Stream:
    """An iterator over the pieces of one generation; `completion()` sums it up at the end."""

    def __init__(self, prompt_tokens: Sequence[int]) -> None:
        self.prompt_tokens = tuple(prompt_tokens)
        self.stats = GenerationStats(num_prompt_tokens=len(prompt_tokens))
        self._pieces: Iterator[Piece] = iter(())
        self._seen: list[Piece] = []
        self.finish_reason: FinishReason | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self._seen.append(piece)
        return piece

    def completion(self) -> Completion:
        """Run to the end, if it is not there yet, and return the whole."""
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
        )
