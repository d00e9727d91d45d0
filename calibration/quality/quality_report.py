"""The result of a quality measurement as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from ..tables import text_table

COLUMNS = (
    ("right", "accuracy", "{:.2%}"),
    ("tok/pass", "tokens_per_target_pass", "{:.3f}"),
    ("tok/s", "tokens_per_second", "{:.1f}"),
    ("s/item", "seconds_per_item", "{:.4f}"),
    ("tok/item", "tokens_per_item", "{:.1f}"),
    ("overrides", "override_rate", "{:.2%}"),
    ("truncated", "truncated_rate", "{:.2%}"),
    ("p", "vs_target.mcnemar", "{:.1g}"),
    ("headroom", "vs_target.share_of_headroom", "{:.0%}"),
    ("tok/pass x strict", "vs_strict.tokens_per_target_pass", "{:.2f}"),
    ("tok/s x strict", "vs_strict.tokens_per_second", "{:.2f}"),
    ("s/item x strict", "vs_strict.seconds_per_item_median", "{:.2f}"),
)
"""Title, figure and format of the columns of the table."""

NOTE = """\
'p' is McNemar's, against the target. 'headroom' is the gain over the target, as a share of the items
that only the draft gets right.
The last columns are ratios to the mode strict; that of s/item is the median over items."""


def as_text(result: dict[str, Any]) -> str:
    """Return what `measure_quality` returned as text for people."""
    modes = result["modes"]
    rows = [["mode", *(title for title, _, _ in COLUMNS)]]
    for name, figures in modes.items():
        cells = [(_figure(figures, key), form) for _, key, form in COLUMNS]
        rows.append([name, *("-" if x is None else form.format(x) for x, form in cells)])
    lines = [*text_table(rows, right=range(1, len(rows[0]))), "", NOTE, ""]
    lines += _kinds(modes)
    n = next(iter(modes.values()))["n"]
    either = result["oracle"]["accuracy"]
    lines.append(
        f"{n} items" + ("" if either is None else f"; either model alone is right on {either:.2%}")
    )
    lines += _resample(result["resample"])
    others = {k: p for k, p in result["mcnemar"].items() if not k.endswith("_vs_target")}
    lines += [f"McNemar p, {name}: {p:.2g}" for name, p in others.items()]
    return "\n".join(lines)


def require_matplotlib() -> Any:
    """Return matplotlib's Figure class.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "calibrate", "Drawing a plot") from error
    return Figure


def plot_quality(result: dict[str, Any], path: Path) -> None:
    """Draw what `measure_quality` returned: the thresholds of collab as a line, all else as points.

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
    either = result["oracle"]["accuracy"]
    if either is not None:
        axes.axhline(100 * either, linestyle=":", color="grey", label="either model alone is right")
    axes.margins(x=0.1)
    axes.set_xlabel("tokens per target pass")
    axes.set_ylabel("right answers in %, with 95 % intervals")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _figure(figures: dict[str, Any], key: str) -> float | None:
    """Return the figure `a.b`; None if the modes for it were not run."""
    found: Any = figures
    for name in key.split("."):
        found = None if found is None else found.get(name)
    value: float | None = found
    return value


def _kinds(modes: dict[str, Any]) -> list[str]:
    """Return a table of the kinds of items: the share of right answers, and the tokens per pass."""
    kinds = list(next(iter(modes.values()))["kinds"])
    if not kinds:
        return []
    rows = [["right, tok/pass", *kinds]]
    for name, figures in modes.items():
        found = [figures["kinds"][kind] for kind in kinds]
        cells = [f"{one['accuracy']:.1%}, {one['tokens_per_target_pass']:.2f}" for one in found]
        rows.append([name, *cells])
    return [*text_table(rows, right=range(1, len(rows[0]))), ""]


def _resample(control: dict[str, Any] | None) -> list[str]:
    """Return what the resample control says."""
    if control is None:
        return []
    draft = control["draft_headroom"]
    return [
        *([] if draft is None else [f"only the draft is right, and not the target: {draft:.2%}"]),
        f"resample control: only a sample is right, and not the target: "
        f"{control['greedy_headroom']:.2%}; only one of two samples is right: "
        f"{control['sampled_headroom']:.2%}",
    ]
