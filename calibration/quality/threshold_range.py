"""One answer for all thresholds at which the arbiter would decide alike.

A curve of quality and speed asks for many thresholds. Most answers have few mismatches, so neighbouring
thresholds often decide all of them alike, and the answer need not be generated again.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ...runtime.arbitration.protocol import Arbiter, Block
from ...runtime.arbitration.referee import is_kept


class RangeArbiter:
    """An arbiter that notes between which thresholds its decisions in one answer would be the same.

    Args:
        arbiter: gives the scores.
        threshold: of the answer.

    Attributes:
        low: least threshold that decides alike.
        high: least threshold above that which may not.
    """

    def __init__(self, arbiter: Arbiter, threshold: float) -> None:
        self._arbiter = arbiter
        self._threshold = threshold
        self.target_outputs = arbiter.target_outputs
        self.draft_outputs = arbiter.draft_outputs
        self.low, self.high = (0.0, 1.0) if threshold < 1 else (1.0, math.inf)  # 1: never asked

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the arbiter's scores [k]."""
        scores = self._arbiter.score(block)
        # Also those that the referee will not reach: they can only make the range smaller.
        for score in map(float, scores[~block.matches]):
            if is_kept(score, self._threshold):
                self.high = min(self.high, score)
            else:
                self.low = max(self.low, score, math.ulp(0.0))  # at 0 every score is kept
        return scores

    def holds(self, threshold: float) -> bool:
        """Whether all decisions would be the same at `threshold`."""
        return self.low <= threshold < self.high
