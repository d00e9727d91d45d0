"""How often tokens are accepted, by the draft's confidence in them."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log

BINS = 10
"""Number of bins of equal width between 0 and 1."""

SHIFT_PRIOR = 0.5
"""Strength of the prior for the shift, in tokens: without observations the shift is 0."""

BIN_PRIOR = 8.0
"""Strength of the shifted confidence as the prior of each bin, in tokens."""

NEWTON_STEPS = 2
"""Steps after each block; they start from the last shift, which is close to the new one."""


class Calibration:
    """Estimates the acceptance of a token from the draft's probability of it.

    The log-odds of the draft's probability are shifted by one number, the maximum-likelihood estimate
    from all observed tokens (Platt scaling with a fixed slope). That corrects a draft that is too
    modest or too confident within a few tokens. Observations in the same bin are added to this prior.

    Args:
        memory: factor by which the weight of older tokens shrinks with each new token of a bin.
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
        """Add the observations of a block.

        Args:
            confidences: of its tokens, as far as they were reached.
            accepted: number of its first tokens that were accepted.
        """
        for position, confidence in enumerate(confidences):
            i = _bin(confidence)
            self._reached[i] = self._memory * self._reached[i] + 1
            self._accepted[i] = self._memory * self._accepted[i] + (position < accepted)
        for _ in range(NEWTON_STEPS):
            self._improve()

    def _improve(self) -> None:
        """Make one Newton step of the shift towards its maximum-likelihood estimate."""
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
"""Log-odds of the middle of each bin."""
