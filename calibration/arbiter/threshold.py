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
"""Thresholds that are tried next, below each of the two that were chosen: speed rises steeply there."""

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
        target_passes_per_item: what an answer costs, whatever the machine. Tokens a pass would not do:
            a longer answer has more of them and is not there sooner.
    """

    threshold: float
    correct: Sequence[bool]
    target_passes_per_item: float

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
    best = max(curve, key=lambda point: (point.accuracy, -point.target_passes_per_item))
    alone = sum(target) / len(target)
    if best.accuracy <= alone:
        return best
    bar = alone + KEPT_GAIN * (best.accuracy - alone)
    kept = [point for point in curve if point.accuracy >= bar]
    return min(kept, key=lambda point: point.target_passes_per_item)


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
    return min(safe, key=lambda point: point.target_passes_per_item, default=None)


def finer_thresholds(curve: Sequence[Point], target: Sequence[bool]) -> list[float]:
    """Return FINER thresholds between each point that would be chosen and the next lower one."""
    chosen = {fastest_with_gain(curve, target).threshold}
    safe = fastest_without_loss(curve, target)
    if safe is not None:
        chosen.add(safe.threshold)
    finer = []
    for threshold in sorted(chosen):
        lower = max((p.threshold for p in curve if p.threshold < threshold), default=0.0)
        step = (threshold - lower) / (FINER + 1)
        finer += [round(lower + step * (i + 1), 4) for i in range(FINER)]
    return finer


def difference_bound(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the one-sided 95 % lower bound of the difference in accuracy, paired by item.

    Adjusted after Agresti and Min (2005): half an item in each of the four cells. Without that, a few
    items that both got wrong would have a difference of zero, and no doubt about it.
    """
    gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n = len(ours) + 2
    mean = (gained - lost) / n
    variance = (gained + lost + 1) / n - mean**2
    return mean - ONE_SIDED_95 * math.sqrt(variance / n)
