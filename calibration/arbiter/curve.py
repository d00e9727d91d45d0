"""The curve of one arbiter: its thresholds as modes, and what was played at them as points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..quality.measurement import play_modes
from ..quality.mode_summary import Answer, target_passes_per_item
from ..quality.modes import Mode
from ..quality.worker import QualityConfig
from ..tasks.item import Task
from .threshold import GRID, Point, finer_thresholds


def curve_modes(name: str, graph: Path, thresholds: Iterable[float] = GRID) -> list[Mode]:
    """Return a mode NAME@THRESHOLD of each threshold."""
    return [Mode(f"{name}@{t:g}", "collab", threshold=t, graph=graph) for t in thresholds]


def curve_points(modes: Sequence[Mode], answers: Mapping[str, Sequence[Answer]]) -> list[Point]:
    """Return what was played at the modes' thresholds."""
    return [
        Point(
            threshold=mode.threshold or 0.0,
            correct=[answer.correct for answer in answers[mode.name]],
            target_passes_per_item=target_passes_per_item(answers[mode.name]),
        )
        for mode in modes
    ]


def play_finer(
    config: QualityConfig,
    tasks: Sequence[Task],
    curve: list[Mode],
    answers: dict[str, list[Answer]],
    results: Path,
) -> None:
    """Play a few thresholds more where the curve turns; add them to `curve` and to `answers`.

    Args:
        config: what the modes have in common.
        tasks: as for the curve.
        curve: modes of one graph, from `curve_modes`.
        answers: to these modes, and to `target`.
        results: journal of answers.
    """
    target = [answer.correct for answer in answers["target"]]
    name, graph = curve[0].name.rpartition("@")[0], curve[0].graph
    assert graph is not None
    more = curve_modes(name, graph, finer_thresholds(curve_points(curve, answers), target))
    if more:
        answers |= play_modes(config, tasks, more, results)
        curve += more
