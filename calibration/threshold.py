"""Choosing the threshold from the whole curve of quality and speed, on validation items.

Two points of the curve have a use: the fastest that keeps most of what collaboration gains, and the
fastest that does not lose to the target alone. Both are chosen on items that neither training nor the
final figures see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GRID = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Thresholds that are tried first."""

FINER = 3
"""Thresholds that are tried next, below the fastest one that was safe: speed rises steeply there."""

KEPT_GAIN = 0.75
"""Share of the most accurate threshold's gain over the target that the default one keeps."""

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


def fastest_with_gain(curve: Sequence[Point], target: Sequence[bool]) -> Point:
    """Return the fastest point that keeps KEPT_GAIN of the most accurate one's gain over the target.

    The very top of a curve is slow, and partly luck. Where no point gains, it is the most accurate one.

    Args:
        curve: the points.
        target: per item, whether the target alone was right.
    """
    best = max(curve, key=lambda point: (point.accuracy, point.tokens_per_target_pass))
    alone = sum(target) / len(target)
    if best.accuracy <= alone:
        return best
    bar = alone + KEPT_GAIN * (best.accuracy - alone)
    kept = [point for point in curve if point.accuracy >= bar]
    return max(kept, key=lambda point: point.tokens_per_target_pass)


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


def finer_thresholds(curve: Sequence[Point], target: Sequence[bool]) -> list[float]:
    """Return FINER thresholds between the fastest point without loss and the next lower one."""
    safe = fastest_without_loss(curve, target)
    if safe is None:
        return []
    lower = max((p.threshold for p in curve if p.threshold < safe.threshold), default=0.0)
    step = (safe.threshold - lower) / (FINER + 1)
    return [round(lower + step * (i + 1), 4) for i in range(FINER)]


def difference_bound(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the one-sided 95 % lower bound of the difference in accuracy, paired by item."""
    gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n = len(ours)
    mean = (gained - lost) / n
    variance = (gained + lost) / n - mean**2
    return mean - ONE_SIDED_95 * math.sqrt(variance / n)
