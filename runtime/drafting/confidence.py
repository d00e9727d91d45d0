"""What a draft's confidence in a token is worth: how often such tokens are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

BINS = 10
"""Equal parts of the range from 0 to 1 that are told apart."""

SHIFT_PRIOR = 0.5
"""Tokens that the draft's own word for its confidence weighs against what was seen."""

BIN_PRIOR = 8.0
"""Tokens that what is known of all tokens weighs against what was seen of those of one bin."""

NEWTON_STEPS = 2
"""After each block; they go on from where the last block's ended, which is never far away."""


class Calibration:
    """How often tokens are accepted of which the draft was so or so sure.

    The draft's own word is shifted in log-odds by one number for all tokens, the most likely one given
    what was seen (Platt scaling with a fixed slope): a draft that is too modest or too sure of itself
    is found out within a few tokens, whatever their confidence. What was seen of tokens in the same bin
    counts on top of that.

    Args:
        memory: what an older token weighs against the next one of its bin.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._reached = [0.0] * BINS
        self._accepted = [0.0] * BINS
        self._shift = 0.0

    def acceptance(self, confidence: float) -> float:
        """Return the probability that a token of this confidence is accepted."""
        i = _bin(confidence)
        expected = BIN_PRIOR * _logistic(_LOG_ODDS[i] + self._shift)
        return (self._accepted[i] + expected) / (self._reached[i] + BIN_PRIOR)

    def record(self, confidences: Sequence[float], accepted: int) -> None:
        """Take in a block.

        Args:
            confidences: of its tokens, as far as they were reached.
            accepted: how many of them were accepted: the first ones.
        """
        for position, confidence in enumerate(confidences):
            i = _bin(confidence)
            self._reached[i] = self._memory * self._reached[i] + 1
            self._accepted[i] = self._memory * self._accepted[i] + (position < accepted)
        for _ in range(NEWTON_STEPS):
            self._improve()

    def _improve(self) -> None:
        """Move the shift by one step of Newton's method towards the most likely one."""
        surplus = sum(self._accepted) + SHIFT_PRIOR * (0.5 - _logistic(self._shift))
        slope = SHIFT_PRIOR / 4
        for reached, odds in zip(self._reached, _LOG_ODDS, strict=True):
            expected = _logistic(odds + self._shift)
            surplus -= reached * expected
            slope += reached * expected * (1 - expected)
        self._shift += max(-1.0, min(1.0, surplus / slope))


def _bin(confidence: float) -> int:
    return min(BINS - 1, int(BINS * confidence))


def _logistic(odds: float) -> float:
    return 1 / (1 + exp(-odds))


_LOG_ODDS = [log((i + 0.5) / (BINS - 0.5 - i)) for i in range(BINS)]
"""Of the middle of each bin."""
