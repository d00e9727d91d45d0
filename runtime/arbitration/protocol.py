"""What the loop asks of an arbiter.

An arbiter sees a drafted block after the target has verified it, and scores every position in one call:
how likely it is that keeping the draft's token there leads to a right answer. The score is used only
where the two models disagree and the block is reached; see `referee.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines.protocol import StepOutput


@dataclass(frozen=True)
class Block:
    """A drafted block of k tokens with what both models saw. Row i is the moment before token i.

    To reach position i, every mismatch before it must have been kept; so what was kept on the way is
    known for all positions at once, and they can be scored together.

    Attributes:
        drafted: int64 [k], the draft's tokens.
        matches: bool [k], where the target would have chosen the same.
        mismatches: float32 [k], mismatches in the block before each position.
        run: float32 [k], draft tokens kept in a row right before each position.
        position: float32 [k], 0 to k-1.
        draft: the draft's rows [k].
        target: the target's rows [k]; `next_input_logprob[i]` is its log-probability of drafted[i].
    """

    drafted: NDArray[np.int64]
    matches: NDArray[np.bool_]
    mismatches: NDArray[np.float32]
    run: NDArray[np.float32]
    position: NDArray[np.float32]
    draft: StepOutput
    target: StepOutput


class Arbiter(Protocol):
    """Scores the positions of a block."""

    @property
    def target_outputs(self) -> tuple[str, ...]:
        """Outputs of the target that the arbiter reads."""

    @property
    def draft_outputs(self) -> tuple[str, ...]:
        """Outputs of the draft that it reads."""

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return [k]: the probability that the draft's token should stay; only mismatches count."""
