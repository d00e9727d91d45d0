"""The picture of a quality measurement: accuracy against tokens per target pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import MissingExtraError


def require_matplotlib() -> Any:
    """Return matplotlib's Figure class, or say which extra brings it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "calibrate", "Drawing a plot") from error
    return Figure


def plot_quality(result: dict[str, Any], path: Path) -> None:
    """Draw what `measure_quality` returned: collab's thresholds as a line, all else as points.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(8, 5), layout="constrained")  # no pyplot, so no display
    axes = figure.add_subplot()
    curves: dict[str, list[tuple[float, float, str]]] = {}
    for name, figures in result["modes"].items():
        x, y = figures["tokens_per_target_pass"], 100 * figures["accuracy"]
        low, high = (100 * bound for bound in figures["accuracy_ci95"])
        curve, at, threshold = name.partition("@")
        if curve.startswith("collab"):
            curves.setdefault(curve, []).append((x, y, threshold if at else name))
            continue
        axes.errorbar([x], [y], yerr=[[y - low], [high - y]], fmt="o", capsize=2)
        axes.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    for curve, points in curves.items():
        points.sort()
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker=".", label=curve)
        for x, y, label in points:
            axes.annotate(label, (x, y), xytext=(3, -10), textcoords="offset points", fontsize=7)
    oracle = result["oracle"]["accuracy"]
    if oracle is not None:
        axes.axhline(100 * oracle, linestyle=":", color="grey", label="either model alone is right")
    axes.margins(x=0.1)
    axes.set_xlabel("tokens per target pass")
    axes.set_ylabel("accuracy in %, with 95 % intervals")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
