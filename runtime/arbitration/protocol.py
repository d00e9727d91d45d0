"""What the loop asks of an arbiter.

An arbiter sees a drafted block after the target has verified it, and scores all positions in one call:
the probability that keeping the draft's token there leads to a correct answer. Only scores at
mismatches that are reached have an effect; see `referee.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..engines.protocol import StepOutput


@dataclass(frozen=True)
class Block:
    """A drafted block of k tokens and both models' rows. Row i is the model's view before token i.

    A position is reached only if every mismatch before it was kept. So the counts of kept tokens are
    known for all positions, and all can be scored in one call.

    Attributes:
        drafted: int64 [k], the draft's tokens.
        matches: bool [k], whether the target would have chosen the same token.
        mismatches: float32 [k], number of mismatches in the block before each position.
        run: float32 [k], number of kept draft tokens directly before each position.
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
        """Outputs of the draft that the arbiter reads."""

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return [k]: the probability that the draft's token should be kept. Only mismatches count."""
