"""Choosing the threshold from the whole curve of quality and speed, on validation items.

Two points of the curve have a use: the fastest of those that cannot be told from the most accurate one,
and the fastest that does not lose to the target alone. Both are chosen on items that neither training
nor the final figures see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Thresholds that are tried."""

ONE_SIDED_95 = 1.6449
"""Standard errors of a one-sided 95 % bound."""


@dataclass(frozen=True)
class Point:
    """One threshold on the validation items.

    Attributes:
        threshold: score above which a draft token stays.
        correct: per item, whether the answer was right.
        tokens_per_target_pass: speed that does not depend on the machine.
    """

    threshold: float
    correct: Sequence[bool]
    tokens_per_target_pass: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)


def fastest_near_best(curve: Sequence[Point]) -> Point:
    """Return the fastest point within one standard error of the most accurate one.

    The one-standard-error rule (Breiman et al., 1984), paired by item: a difference smaller than its
    own error is no reason to be slower, and the very top of a noisy curve is partly luck.
    """
    best = max(curve, key=lambda point: (point.accuracy, point.tokens_per_target_pass))
    near = []
    for point in curve:
        mean, error = paired_difference(point.correct, best.correct)
        if mean >= -error:
            near.append(point)
    return max(near, key=lambda point: point.tokens_per_target_pass)


def fastest_without_loss(
    curve: Sequence[Point], target: Sequence[bool], margin: float = 0.005
) -> Point | None:
    """Return the fastest point that does not lose to the target, or None if each might.

    Args:
        curve: the points.
        target: per item, whether the target alone was right.
        margin: how far the one-sided 95 % bound of the paired difference may lie below zero.
    """
    safe = [point for point in curve if difference_bound(point.correct, target) >= -margin]
    return max(safe, key=lambda point: point.tokens_per_target_pass, default=None)


def difference_bound(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the one-sided 95 % lower bound of the difference in accuracy, paired by item."""
    mean, error = paired_difference(ours, theirs)
    return mean - ONE_SIDED_95 * error


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float]:
    """Return the difference in accuracy and its standard error, paired by item."""
    gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n = len(ours)
    mean = (gained - lost) / n
    return mean, math.sqrt(((gained + lost) / n - mean**2) / n)
