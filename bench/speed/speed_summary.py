"""What the rounds amount to: figures by row, the best rows, and ours against the best of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from .measure import Row, Samples, common_prefix, merged_facts, paired_ratio
from .peer_formats import target_of
from .peers import OURS


def summarise(rows: Sequence[Row], samples: Sequence[Samples]) -> list[dict[str, Any]]:
    """Return the figures of each row, the equality of its output with our plain fp32 one included."""
    reference = _reference(rows, samples)
    figures = []
    for row, sample in zip(rows, samples, strict=True):
        figure: dict[str, Any] = {
            "name": row.name,
            "format": row.format,
            "mode": row.mode,
            "k": row.k,
            "setting": row.setting,
        }
        figures.append(figure)
        if sample.error is not None or not sample.rates:
            figure["skipped"] = sample.error or "it was never played"
            continue
        plain = _plain_twin(row, rows, samples)
        figure |= {
            "tokens_per_second": median(sample.rates),
            "decode_tokens_per_second": median(sample.decode_rates),
            "time_to_first_token_ms": 1000 * median(sample.first),
            "peak_memory_bytes": sample.peak,
            "speedup": None if plain is None else paired_ratio(sample.rates, plain.rates),
            "tokens_per_second_by_round": sample.rates,
            **merged_facts(sample.facts),
        }
        if reference is not None:
            shared = [
                common_prefix(ours, theirs)
                for ours, theirs in zip(reference.outputs, sample.outputs, strict=True)
            ]
            figure["tokens_equal_to_ours"] = min(shared)
            figure["equal_to_ours"] = sample.outputs == reference.outputs
        if plain is not None:
            figure["equal_to_own_target"] = sample.outputs == plain.outputs
    return figures


def _reference(rows: Sequence[Row], samples: Sequence[Samples]) -> Samples | None:
    """Return our target-only samples in fp32, or in the only format there is."""
    plain = [
        (row.format != "fp32", i)
        for i, row in enumerate(rows)
        if row.name == OURS and row.k == 0 and samples[i].error is None
    ]
    return samples[min(plain)[1]] if plain else None


def _plain_twin(row: Row, rows: Sequence[Row], samples: Sequence[Samples]) -> Samples | None:
    """Return the target-only samples of the same runtime, target's format and setting."""
    plain = replace(row, format=target_of(row.format), k=0, process=None)
    for other, sample in zip(rows, samples, strict=True):
        if replace(other, process=None) == plain and sample.rates:
            return sample
    return None


def best_of_each(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fastest row of each runtime: by the target's format, and over all formats.

    Returns:
        `by_target_format` and `overall`; each runtime's `row`, `format`, `mode` and
        `tokens_per_second` by its name.
    """
    return _grouped(figures, _best_rows)


def best_ratios(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return our best row against the best of the peers.

    Ratios are medians over the rounds of the two rows' ratio in the same round.

    Returns:
        `by_format`: in each format of a pair, the target alone in its format included.
        `by_target_format`: over all drafts of a target's format, so with fp32 over all that puts out
        what fp32 puts out. `overall`: over all formats. Each holds `ours`, `best_peer` and `ratio`;
        what one side did not play is left out.
    """
    grouped = _grouped(figures, _ratio)
    by_format = {}
    for text in dict.fromkeys(figure["format"] for figure in figures if figure["k"] != 0):
        alone = target_of(text)
        ratio = _ratio(
            [f for f in figures if f["format"] == text or (f["k"] == 0 and f["format"] == alone)]
        )
        if ratio:
            by_format[text] = ratio
    return {"by_format": by_format, **grouped}


def _grouped(
    figures: Sequence[dict[str, Any]],
    sum_up: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
) -> dict[str, Any]:
    """Return what `sum_up` makes of the rows of each format of the target, and of all rows."""
    targets = dict.fromkeys(target_of(figure["format"]) for figure in figures)
    by_target = {
        name: sum_up([f for f in figures if target_of(f["format"]) == name]) for name in targets
    }
    return {
        "by_target_format": {name: found for name, found in by_target.items() if found},
        "overall": sum_up(figures),
    }


def _best_rows(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fastest row of each runtime by its name."""
    names = dict.fromkeys(figure["name"] for figure in figures)
    found = {name: _fastest([f for f in figures if f["name"] == name]) for name in names}
    return {
        name: {
            "row": describe(best),
            **{key: best[key] for key in ("format", "mode", "tokens_per_second")},
        }
        for name, best in found.items()
        if best is not None
    }


def _ratio(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return our fastest row against the fastest of the others; nothing where either is missing."""
    ours = _fastest([figure for figure in figures if figure["name"] == OURS])
    rival = _fastest([figure for figure in figures if figure["name"] != OURS])
    if ours is None or rival is None:
        return {}
    key = "tokens_per_second_by_round"
    return {
        "ours": describe(ours),
        "best_peer": describe(rival),
        "ratio": paired_ratio(ours[key], rival[key]),
    }


def _fastest(figures: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest of the rows that were played."""
    played = [figure for figure in figures if "skipped" not in figure]
    return max(played, key=lambda figure: float(figure["tokens_per_second"]), default=None)


def describe(figure: dict[str, Any]) -> str:
    """Return a row's name, format, mode and setting as one phrase."""
    setting = f", {figure['setting']}" if figure["setting"] else ""
    return f"{figure['name']} {figure['format']} {figure['mode']}{setting}"
