"""Choosing the threshold from the whole curve of quality and speed, on validation items.

Two points of the curve are useful: the fastest that keeps most of what collaboration gains, and the
fastest that does not lose to the target alone. Both are chosen on items that neither training nor the
final figures see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..quality.measurement import run_modes
from ..quality.mode_runner import QualityConfig
from ..quality.mode_summary import Answer, target_passes_per_item
from ..quality.modes import PLAIN, Mode
from ..quality.statistics import difference_bound
from ..tasks.item import Task

GRID = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Thresholds that are tried first."""

FINER = 3
"""Thresholds that are tried next, below each of the two that were chosen: speed rises steeply there."""

KEPT_GAIN = 0.75
"""Share of the most accurate threshold's gain over the target that the default threshold keeps."""


@dataclass(frozen=True)
class Point:
    """One threshold on the validation items.

    Attributes:
        threshold: score above which a draft token is kept.
        correct: for each item, whether the answer was right.
        target_passes_per_item: cost of an answer, on any machine. Tokens per pass would not do: a
            longer answer has more of them and is not finished sooner.
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

    The very top of a curve is slow, and partly luck. If no point gains, return the most accurate one.

    Args:
        curve: the points.
        target: for each item, whether the target alone was right.
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
        target: for each item, whether the target alone was right.
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


def curve_modes(name: str, graph: Path, thresholds: Iterable[float] = GRID) -> list[Mode]:
    """Return a mode NAME@THRESHOLD for each threshold."""
    return [Mode(f"{name}@{t:g}", "collab", threshold=t, graph=graph) for t in thresholds]


def curve_points(modes: Sequence[Mode], answers: Mapping[str, Sequence[Answer]]) -> list[Point]:
    """Return what was measured at the modes' thresholds."""
    return [
        Point(
            threshold=mode.threshold or 0.0,
            correct=[answer.correct for answer in answers[mode.name]],
            target_passes_per_item=target_passes_per_item(answers[mode.name]),
        )
        for mode in modes
    ]


def measure_curves(
    config: QualityConfig, tasks: Sequence[Task], graphs: Mapping[str, Path], results: Path
) -> tuple[dict[str, list[Mode]], dict[str, list[Answer]]]:
    """Answer `tasks` in the plain modes and at the thresholds of arbiters, more finely where they turn.

    Args:
        config: the settings that all modes share.
        tasks: validation tasks.
        graphs: the arbiters' graphs by name.
        results: journal of answers.

    Returns:
        The modes of each arbiter by its name, and the answers of all modes.
    """
    curves = {name: curve_modes(name, graph) for name, graph in graphs.items()}
    modes = [*PLAIN, *(mode for curve in curves.values() for mode in curve)]
    answers = run_modes(config, tasks, modes, results)
    target = [answer.correct for answer in answers["target"]]
    finer: list[Mode] = []
    for name, curve in curves.items():
        between = finer_thresholds(curve_points(curve, answers), target)
        more = curve_modes(name, graphs[name], between)
        curve += more
        finer += more
    return curves, answers | run_modes(config, tasks, finer, results)
