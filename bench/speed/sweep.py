"""Speed against acceptance: the controlled pair at several noises, and what memory allows at each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .bandwidth import PairBytes
from .measure import paired_ratio
from .peers import OURS
from .prepare import journal
from .roofline import acceptance_of, project
from .speed import SpeedConfig, measure_speed, say

NOISES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, float("inf"))
"""From a draft that is always right to one that has nothing to do with its target."""


def measure_sweep(config: SpeedConfig, noises: Sequence[float] = NOISES) -> list[dict[str, Any]]:
    """Measure our rows of the first format at each noise, with the pool of threads that is faster.

    A run that is stopped goes on with the next noise.

    Returns:
        By noise: `noise`, `acceptance` (of a draft of one token), `rows`, `bound_tokens_per_second`
        (of the best draft length) and `bound_target_only`; see `roofline`.
    """
    config = replace(config, peers=(), formats=config.formats[:1], pools=("shared",))
    kept = journal(config.work, "sweep", config, say)
    points = []
    for noise in noises:
        name = "unrelated" if math.isinf(noise) else f"{noise:g}"
        say(f"noise {name}")
        points.append(kept.once(name, lambda noise=noise: _point(config, noise)))  # type: ignore[misc]
    kept.clear()
    return points


def _point(config: SpeedConfig, noise: float) -> dict[str, Any]:
    """Measure at one noise."""
    result = measure_speed(replace(config, noise=noise))
    rows = [row for row in result["rows"] if row["name"] == OURS and "skipped" not in row]
    sizes = PairBytes(**result["bounds"]["pair_bytes"][str(config.formats[0])])
    acceptance = acceptance_of(rows)
    projected = project(sizes, result["bounds"]["read_bytes_per_second"], acceptance)
    return {
        "noise": "unrelated" if math.isinf(noise) else noise,
        "acceptance": acceptance,
        "rows": rows,
        "bound_tokens_per_second": max(projected.speculative),
        "bound_target_only": projected.target_only,
        "controller": controller_quality(rows),
    }


def controller_quality(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by setting what `auto` gets of the target alone, and of the best fixed draft length.

    Both are medians over the rounds, of rows of the same round.
    """
    quality = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        rates = {r["k"]: r["tokens_per_second_by_round"] for r in rows if r["setting"] == setting}
        auto = rates.pop("auto", None)
        if auto is not None and 0 in rates:
            quality[setting] = {
                "of_target_only": paired_ratio(auto, rates[0]),
                "of_best_fixed": min(paired_ratio(auto, fixed) for fixed in rates.values()),
            }
    return quality


def plot_sweep(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw tokens a second against acceptance.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from ...calibration.quality.accuracy_plot import require_matplotlib

    figure = require_matplotlib()(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    points = sorted(points, key=lambda point: float(point["acceptance"]))
    x = [100 * point["acceptance"] for point in points]
    for setting in dict.fromkeys(row["setting"] for row in points[0]["rows"]):
        for label, choose in (
            ("target alone", lambda rows: rows[0]),
            (
                "best fixed draft length",
                lambda rows: max(v for k, v in rows.items() if k != "auto"),
            ),
            ("auto", lambda rows: rows["auto"]),
        ):
            y = []
            for point in points:
                rates = {
                    row["k"]: row["tokens_per_second"]
                    for row in point["rows"]
                    if row["setting"] == setting
                }
                y.append(choose(rates))  # type: ignore[no-untyped-call]
            axes.plot(x, y, marker=".", label=f"{label}, {setting}")
    for label, key in (
        ("memory bound, speculative", "bound_tokens_per_second"),
        ("memory bound, target alone", "bound_target_only"),
    ):
        axes.plot(x, [point[key] for point in points], linestyle=":", color="grey", label=label)
    axes.set_xlabel("drafted tokens that are accepted, draft of one, in %")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
