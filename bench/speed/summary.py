"""What the rounds amount to: figures by row, and our best row against the best of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from .measure import Row, Samples, common_prefix, merged_facts, paired_ratio
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
    """Return the target-only samples of the same runtime, format and setting."""
    for other, sample in zip(rows, samples, strict=True):
        if replace(other, process=None) == replace(row, k=0, process=None) and sample.rates:
            return sample
    return None


def best_ratios(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return our best row against the best of the peers, in fp32 and over all formats.

    Ratios are medians over the rounds of the two rows' ratio in the same round.
    """
    ratios: dict[str, Any] = {}
    for title, formats in (("fp32", {"fp32"}), ("any format", None)):
        played = [
            figure
            for figure in figures
            if "skipped" not in figure and (formats is None or figure["format"] in formats)
        ]
        ours = [figure for figure in played if figure["name"] == OURS]
        theirs = [figure for figure in played if figure["name"] != OURS]
        if not ours or not theirs:
            continue
        best, rival = (max(group, key=lambda f: f["tokens_per_second"]) for group in (ours, theirs))
        ratios[title] = {
            "ours": describe(best),
            "best_peer": describe(rival),
            "ratio": paired_ratio(
                best["tokens_per_second_by_round"], rival["tokens_per_second_by_round"]
            ),
        }
    return ratios


def describe(figure: dict[str, Any]) -> str:
    """Return a row's name, format, mode and setting as one phrase."""
    setting = f", {figure['setting']}" if figure["setting"] else ""
    return f"{figure['name']} {figure['format']} {figure['mode']}{setting}"
