"""Turns an arbiter's scores into decisions, within bounds that no score can lift.

The target alone decides where the text ends and where special tokens stand. A run of kept draft tokens
is bounded, a block's share too, and a token that would turn the text in circles is not kept: accepted
errors compound, and a loop is how that shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..engines.protocol import StepOutput
from .protocol import Arbiter, Block


@dataclass(frozen=True)
class Caps:
    """Bounds on overrides.

    Attributes:
        in_a_row: draft tokens kept against the target side by side.
        per_block: draft tokens kept against the target in one drafted block.
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
        threshold: a draft token stays where its score is above; at 1 none can, so strict decoding.
        protected: tokens that only the target may choose: end of text and special tokens.
        caps: bounds that no score can lift.
        num_capped: mismatches that a cap decided, by the cap's name.
    """

    arbiter: Arbiter
    threshold: float
    protected: frozenset[int]
    caps: Caps = field(default_factory=Caps)
    num_capped: dict[str, int] = field(
        default_factory=lambda: {"in_a_row": 0, "per_block": 0, "repetition": 0}
    )

    def keep(
        self,
        tokens: Sequence[int],
        drafted: list[int],
        draft: StepOutput,
        verified: StepOutput,
    ) -> list[bool]:
        """Return for each drafted token whether it stands, matches included.

        Args:
            tokens: everything before the block.
            drafted: the block, k tokens.
            draft: the draft's rows [k].
            verified: the target's rows, the last k+1 of which belong to the block.
        """
        target = _rows(verified, slice(-len(drafted) - 1, -1))
        block = self._block(drafted, draft, target)
        keep = block.matches.copy()
        if self.threshold < 1 and not keep.all():
            scores = self.arbiter.score(block)
            for i in np.flatnonzero(~keep).tolist():
                # A rejected position ends the block; what lies behind it was never reached.
                if self._forbidden(block, i, tokens) or not self.decide(i, float(scores[i])):
                    break
                keep[i] = True
        return list(keep.tolist())

    def decide(self, i: int, score: float) -> bool:
        """Say whether the draft's token stays at position i of the block; training overrides this."""
        return score > self.threshold or self.threshold == 0  # a score may underflow to 0

    def _block(self, drafted: list[int], draft: StepOutput, target: StepOutput) -> Block:
        ids = np.asarray(drafted, dtype=np.int64)
        matches = target.token == ids
        mismatch = (~matches).astype(np.float32)
        run = np.empty(len(ids), dtype=np.float32)
        length = 0  # each block begins behind a token of the target: a correction or a bonus
        for i, match in enumerate(matches.tolist()):
            run[i] = length
            length = 0 if match else length + 1
        return Block(
            drafted=ids,
            matches=matches,
            mismatches=np.cumsum(mismatch, dtype=np.float32) - mismatch,
            run=run,
            position=np.arange(len(ids), dtype=np.float32),
            draft=draft,
            target=target,
        )

    def _forbidden(self, block: Block, i: int, tokens: Sequence[int]) -> bool:
        """Say whether position i is beyond the arbiter, and count which cap forbids it."""
        if not self.protected.isdisjoint((int(block.drafted[i]), int(block.target.token[i]))):
            return True
        caps = self.caps
        if block.run[i] >= caps.in_a_row:
            self.num_capped["in_a_row"] += 1
        elif block.mismatches[i] >= caps.per_block:
            self.num_capped["per_block"] += 1
        elif _repeats([*tokens[-caps.repeat_window :], *block.drafted[: i + 1].tolist()], caps):
            self.num_capped["repetition"] += 1
        else:
            return False
        return True


def _repeats(tail: list[int], caps: Caps) -> bool:
    """Say whether the last n-gram of `tail` stood in it before."""
    n = caps.repeat_ngram
    last = tail[-n:]
    return any(tail[start : start + n] == last for start in range(len(tail) - n))


def _rows(output: StepOutput, rows: slice) -> StepOutput:
    """Return the same view restricted to `rows`."""
    arrays = {field.name: getattr(output, field.name) for field in fields(output)}
    cut: dict[str, Any] = {name: a[rows] for name, a in arrays.items() if a is not None}
    return StepOutput(**cut)
