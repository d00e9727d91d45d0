"""The tables of `arbiter_study`: from answers to what the arbiter is worth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cospec.calibration.arbiter.threshold import difference_bound
from cospec.calibration.quality.mode_summary import Answer, oracle, summarise
from cospec.calibration.quality.modes import Mode
from cospec.calibration.quality.statistics import mcnemar

_HEAD = (
    "| mode | threshold | right % | of headroom | p against target | tokens a pass | to strict "
    "| tokens/s | to strict | ms an item | item to strict, median | kept % |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def compare(
    modes: Sequence[Mode],
    answers: Mapping[str, list[Answer]],
    kinds: Sequence[str | None],
) -> dict[str, Any]:
    """Return the figures of every mode, against the target and against strict, item by item.

    Args:
        modes: as played.
        answers: by mode, in the order of `kinds`.
        kinds: of the items.
    """
    target = [answer.correct for answer in answers["target"]]
    either = oracle(dict(answers))["accuracy"]
    headroom = (either or 0.0) - sum(target) / len(target)
    rows = {}
    for mode in modes:
        played = answers[mode.name]
        right = [answer.correct for answer in played]
        figures = summarise(kinds, played)
        gain = figures["accuracy"] - sum(target) / len(target)
        strict = answers["strict"]
        seconds = [
            theirs.seconds / ours.seconds for ours, theirs in zip(played, strict, strict=True)
        ]
        rows[mode.name] = figures | {
            "threshold": mode.threshold if mode.kind == "collab" else None,
            "gain": gain,
            "share_of_headroom": gain / headroom if headroom else None,
            "gain_bound95": difference_bound(right, target),
            "mcnemar_vs_target": mcnemar(right, target),
            "passes_vs_strict": figures["tokens_per_target_pass"]
            / summarise(kinds, strict)["tokens_per_target_pass"],
            "speed_vs_strict": figures["tokens_per_second"]
            / summarise(kinds, strict)["tokens_per_second"],
            "item_speed_vs_strict_median": statistics.median(seconds),
            "by_kind": _by_kind(kinds, played),
        }
    return {"n": len(target), "modes": rows, "oracle": {"accuracy": either}}


def _by_kind(kinds: Sequence[str | None], played: Sequence[Answer]) -> dict[str, dict[str, float]]:
    found = {}
    for kind in sorted({kind for kind in kinds if kind is not None}):
        some = [a for a, k in zip(played, kinds, strict=True) if k == kind]
        figures = summarise([None] * len(some), some)
        found[kind] = {name: figures[name] for name in ("accuracy", "tokens_per_target_pass")}
    return found


def as_markdown(result: dict[str, Any]) -> str:
    """Return the tables of `arbiter_study` as text."""
    lines = []
    for split in ("test", "validation"):
        part = result[split]
        kinds = sorted(part["modes"]["target"]["by_kind"])
        lines += [
            f"{part['n']} {split} problems; either model alone is right on "
            f"{part['oracle']['accuracy']:.2%}.",
            "",
            *_HEAD,
            *(_row(name, row) for name, row in part["modes"].items()),
            "",
            "By kind, right % and tokens a pass:",
            "",
            "| mode | " + " | ".join(kinds) + " |",
            "|---|" + "---:|" * len(kinds),
        ]
        for name, row in part["modes"].items():
            cells = [
                f"{100 * of_kind['accuracy']:.1f}, {of_kind['tokens_per_target_pass']:.2f}"
                for of_kind in (row["by_kind"][kind] for kind in kinds)
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _row(name: str, row: dict[str, Any]) -> str:
    cells = [
        name,
        "" if row["threshold"] is None else f"{row['threshold']:g}",
        f"{100 * row['accuracy']:.1f}",
        "" if row["share_of_headroom"] is None else f"{row['share_of_headroom']:.0%}",
        f"{row['mcnemar_vs_target']:.1g}",
        f"{row['tokens_per_target_pass']:.2f}",
        f"{row['passes_vs_strict']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['speed_vs_strict']:.2f}",
        f"{1000 * row['seconds_per_item']:.1f}",
        f"{row['item_speed_vs_strict_median']:.2f}",
        "" if row["override_rate"] is None else f"{100 * row['override_rate']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"
