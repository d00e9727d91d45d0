"""Speed against acceptance: the controlled pair at several noises, and what memory allows at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .bandwidth import PairBytes
from .peers import OURS
from .roofline import acceptance_of, project
from .speed import SpeedConfig, measure_speed

NOISES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, float("inf"))
"""From a draft that is always right to one that has nothing to do with its target."""


def measure_sweep(config: SpeedConfig, noises: Sequence[float] = NOISES) -> list[dict[str, Any]]:
    """Measure our rows of the first format at each noise.

    Returns:
        By noise: `noise`, `acceptance` (of a draft of one token), `rows`, `bound_tokens_per_second`
        (of the best draft length) and `bound_target_only`; see `roofline`.
    """
    weights = config.formats[0]
    points = []
    for noise in noises:
        result = measure_speed(replace(config, noise=noise, peers=(), formats=(weights,)))
        rows = [row for row in result["rows"] if row["name"] == OURS and "skipped" not in row]
        sizes = PairBytes(**result["bounds"]["pair_bytes"][str(weights)])
        acceptance = acceptance_of(rows)
        projected = project(sizes, result["bounds"]["read_bytes_per_second"], acceptance)
        points.append(
            {
                "noise": noise if noise != float("inf") else "unrelated",
                "acceptance": acceptance,
                "rows": rows,
                "bound_tokens_per_second": max(projected.speculative),
                "bound_target_only": projected.target_only,
                "guard": guard_quality(rows),
            }
        )
    return points


def guard_quality(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by setting what `auto` gets of the target alone, and of the best fixed draft length."""
    quality = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        rate = {r["k"]: r["tokens_per_second"] for r in rows if r["setting"] == setting}
        auto = rate.pop("auto", None)
        if auto is not None and 0 in rate:
            quality[setting] = {
                "of_target_only": auto / rate[0],
                "of_best_fixed": auto / max(rate.values()),
            }
    return quality


def plot_sweep(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw tokens a second against acceptance.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from ...calibration.quality_plot import require_matplotlib

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
