"""Turns an arbiter's scores into decisions, within caps that hold for every score.

Only the target chooses ends of text and special tokens. The number of draft tokens kept in a row and
per block is limited, because accepted errors compound. A token that would repeat an n-gram is not kept,
because such errors end in loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..engines.protocol import StepOutput
from .protocol import Arbiter, Block

Cap = Literal["in_a_row", "per_block", "repetition"]
"""A bound on overrides; see `Caps`."""

Ground = Cap | Literal["score", "protected"]
"""What decided a mismatch: the arbiter's score and the threshold, a cap, or a protected token."""


@dataclass(frozen=True)
class Caps:
    """Bounds on overrides.

    Attributes:
        in_a_row: most draft tokens kept against the target without another token between them.
        per_block: most draft tokens kept against the target in one drafted block.
        repeat_ngram: length of the n-gram that a kept token must not complete a second time within
            the last `repeat_window` tokens.
        repeat_window: see `repeat_ngram`.
    """

    in_a_row: int = 4
    per_block: int = 6
    repeat_ngram: int = 8
    repeat_window: int = 64


@dataclass
class Referee:
    """Decides at the mismatches of a block.

    Attributes:
        arbiter: scores positions.
        threshold: a draft token is kept if its score is above this; 1 keeps none, as strict does.
        protected: tokens that only the target may choose: ends of text and special tokens.
        caps: limits that hold for every score.
        num_capped: mismatches that a cap decided, by the cap's name.
        scores: float32 [k], of the last block; None if the arbiter was not called.
        refused_for: why the last block ends at a mismatch; None if it does not. The mismatches before
            that one were kept because of their scores.
    """

    arbiter: Arbiter
    threshold: float
    protected: frozenset[int]
    caps: Caps = field(default_factory=Caps)
    num_capped: dict[str, int] = field(
        default_factory=lambda: {"in_a_row": 0, "per_block": 0, "repetition": 0}
    )
    scores: NDArray[np.float32] | None = field(default=None, init=False)
    refused_for: Ground | None = field(default=None, init=False)

    def keep(
        self,
        tokens: Sequence[int],
        drafted: list[int],
        chosen: list[int],
        draft: StepOutput,
        verified: StepOutput,
    ) -> list[bool]:
        """Return for each drafted token whether it is accepted, matches included.

        Args:
            tokens: everything before the block.
            drafted: the block, k tokens.
            chosen: the target's choices along the block, at least k tokens.
            draft: the draft's rows [k].
            verified: the target's rows, the last k+1 of which belong to the block.
        """
        keep = [proposed == wanted for proposed, wanted in zip(drafted, chosen, strict=False)]
        self.scores = self.refused_for = None
        if self.threshold >= 1:
            self.refused_for = None if all(keep) else "score"
            return keep
        run = overrides = 0  # draft tokens kept against the target: side by side, and in all
        for i, match in enumerate(keep):
            if match:
                run = 0
                continue
            # A rejected position ends the block; the positions after it are never reached.
            if not self.protected.isdisjoint((drafted[i], chosen[i])):
                self.refused_for = "protected"
                break
            cap = self._cap(
                run, overrides, [*tokens[-self.caps.repeat_window :], *drafted[: i + 1]]
            )
            if cap is not None:
                self.num_capped[cap] += 1
                self.refused_for = cap
                break
            if self.scores is None:  # called only when it may decide
                self.scores = self._score(_block(drafted, keep, draft, verified))
            if not self.decide(i, float(self.scores[i])):
                self.refused_for = "score"
                break
            keep[i] = True
            run, overrides = run + 1, overrides + 1
        return keep

    def _score(self, block: Block) -> NDArray[np.float32]:
        """Return the arbiter's scores [k] of a block.

        Raises:
            UsageError: the arbiter returned something else.
        """
        scores = self.arbiter.score(block)
        read: NDArray[np.float32]
        try:
            read = np.asarray(scores, dtype=np.float32)
        except (TypeError, ValueError):
            read = np.empty(0, dtype=np.float32)
        if read.shape != block.drafted.shape:
            raise UsageError(
                f"the arbiter {type(self.arbiter).__name__} returned {scores!a:.60} for a block of "
                f"{len(block.drafted)} tokens",
                hint="`score(block)` returns one number for each drafted token: float32 [k]",
            )
        return read

    def decide(self, i: int, score: float) -> bool:
        """Return whether the draft's token is kept at position i; training overrides this."""
        return is_kept(score, self.threshold)

    def _cap(self, run: int, overrides: int, tail: list[int]) -> Cap | None:
        """Return the cap that forbids keeping the last token of `tail`, or None."""
        if run >= self.caps.in_a_row:
            return "in_a_row"
        if overrides >= self.caps.per_block:
            return "per_block"
        return "repetition" if _repeats(tail, self.caps) else None


def is_kept(score: float, threshold: float) -> bool:
    """Return whether a draft token with this score is kept, as far as the threshold decides."""
    return score > threshold or threshold == 0  # a score may underflow to 0


def _repeats(tail: list[int], caps: Caps) -> bool:
    """Return whether the last n-gram of `tail` occurred in it before."""
    n = caps.repeat_ngram
    last = tail[-n:]
    return any(tail[start : start + n] == last for start in range(len(tail) - n))


def _block(
    drafted: list[int], matches: list[bool], draft: StepOutput, verified: StepOutput
) -> Block:
    """Return what the arbiter reads: both models' rows, and how each position is reached."""
    run, mismatches = [0], [0]  # a block begins after a token of the target
    for match in matches[:-1]:
        run.append(0 if match else run[-1] + 1)
        mismatches.append(mismatches[-1] + (not match))
    k = len(drafted)
    return Block(
        drafted=np.array(drafted, dtype=np.int64),
        matches=np.array(matches, dtype=np.bool_),
        mismatches=np.array(mismatches, dtype=np.float32),
        run=np.array(run, dtype=np.float32),
        position=np.arange(k, dtype=np.float32),
        draft=draft,
        target=verified.restricted(slice(-k - 1, -1)),
    )
