"""From answers to figures: what each mode is worth, and whether two modes differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .modes import Mode
from .statistics import difference_bound, mcnemar, wilson_interval


@dataclass(frozen=True)
class Answer:
    """The answer of one mode to one item.

    Attributes:
        correct: whether the checker accepts it.
        tokens: tokens of the output.
        target_passes: verify passes of the target; in the mode `draft`, passes of the draft.
        seconds: duration of the generation, prompt included and check excluded.
        mismatches: positions that were reached and at which the models disagreed; 0 without drafts.
        overrides: mismatches at which the draft's token was kept.
        truncated: whether the answer ended because it reached the limit of tokens or the capacity.
    """

    correct: bool
    tokens: int
    target_passes: int
    seconds: float
    mismatches: int
    overrides: int
    truncated: bool


Answers = Mapping[str, Sequence[Answer]]
"""Answers by the mode's name, in the order of the items."""


def summarise_modes(
    modes: Sequence[Mode], answers: Answers, kinds: Sequence[str | None]
) -> dict[str, Any]:
    """Return the figures of every mode, and what two of them say together.

    Args:
        modes: as they were run.
        answers: to the same items, by mode.
        kinds: kind of each item, None for no kind.

    Without the mode `target`, the answers of `strict`, which are the same, stand in for it.

    Returns:
        `modes` (see `summarise`, and `vs_target` and `vs_strict` if those modes were run), `oracle`,
        `mcnemar` and `resample`.
    """
    figures = {mode.name: summarise(kinds, answers[mode.name]) for mode in modes}
    stands_in = "strict" if "target" not in answers and "strict" in answers else None
    if stands_in is not None:
        answers = {**answers, "target": answers[stands_in]}
    for mode in modes:
        others: dict[str, Any] = {}
        if "target" in answers and mode.kind not in ("target", stands_in):
            others["vs_target"] = _against_target(mode, answers)
        if "strict" in answers and mode.kind != "strict":
            others["vs_strict"] = _against_strict(mode, answers)
        figures[mode.name] |= others
    return {
        "modes": figures,
        "oracle": {"accuracy": either_right(answers)},
        "mcnemar": paired_tests(modes, answers),
        "resample": resample_control(modes, answers),
    }


def summarise(kinds: Sequence[str | None], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of one mode, over all items and for each kind of them.

    Rates are ratios of sums over all items: tokens per pass and per second count every token equally.
    """
    seconds, tokens = (sum(getattr(a, name) for a in answers) for name in ("seconds", "tokens"))
    n = len(answers)
    by_kind: dict[str, list[Answer]] = {}
    for kind, answer in zip(kinds, answers, strict=True):
        if kind is not None:
            by_kind.setdefault(kind, []).append(answer)
    return {
        "accuracy": accuracy(answers),
        "accuracy_ci95": list(wilson_interval(sum(_right(answers)), n)),
        "n": n,
        "tokens_per_target_pass": tokens_per_target_pass(answers),
        "target_passes_per_item": target_passes_per_item(answers),
        "tokens_per_second": tokens / seconds,
        "seconds_per_item": seconds / n,
        "tokens_per_item": tokens / n,
        "override_rate": override_rate(answers),
        "truncated_rate": sum(answer.truncated for answer in answers) / n,
        "kinds": {
            kind: {
                "accuracy": accuracy(some),
                "tokens_per_target_pass": tokens_per_target_pass(some),
                "n": len(some),
            }
            for kind, some in sorted(by_kind.items())
        },
    }


def accuracy(answers: Sequence[Answer]) -> float:
    """Return the share of right answers."""
    return sum(_right(answers)) / len(answers)


def tokens_per_target_pass(answers: Sequence[Answer]) -> float:
    """Return the ratio of sums over all answers: a speed that does not depend on the machine."""
    return sum(answer.tokens for answer in answers) / sum(a.target_passes for a in answers)


def target_passes_per_item(answers: Sequence[Answer]) -> float:
    """Return the mean number of passes of an answer. Unlike a rate, it grows with longer answers."""
    return sum(answer.target_passes for answer in answers) / len(answers)


def override_rate(answers: Sequence[Answer]) -> float | None:
    """Return the share of reached mismatches at which the draft's token was kept."""
    mismatches = sum(answer.mismatches for answer in answers)
    return sum(answer.overrides for answer in answers) / mismatches if mismatches else None


def either_right(answers: Answers, one: str = "target", other: str = "draft") -> float | None:
    """Return the share of items on which at least one of two modes is right; None if one is missing."""
    if not {one, other} <= answers.keys():
        return None
    pairs = zip(_right(answers[one]), _right(answers[other]), strict=True)
    return sum(a or b for a, b in pairs) / len(answers[one])


def paired_tests(modes: Sequence[Mode], answers: Answers) -> dict[str, float]:
    """Test every judged mode against the target, and every collab mode against every baseline."""
    pairs = [(m.name, "target") for m in modes if m.is_judged and "target" in answers]
    pairs += [
        (mode.name, other.name)
        for mode in modes
        for other in modes
        if mode.kind == "collab" and other.kind == "baseline"
    ]
    return {f"{a}_vs_{b}": mcnemar(_right(answers[a]), _right(answers[b])) for a, b in pairs}


def resample_control(modes: Sequence[Mode], answers: Answers) -> dict[str, Any] | None:
    """Return how much headroom chance alone gives: a second answer of the same model.

    Where the target and the draft are compared, some of the items that only the draft gets right are
    luck. Two sampled answers of the target differ by nothing but luck.

    Returns:
        None unless `target` and two modes of kind `sample` were run. Else the `modes` that were
        compared; `draft_headroom`, the share of items that only the draft gets right, or None;
        `greedy_headroom`, the share that only a sample gets right and the target's greedy answer does
        not (the mean of the two); and `sampled_headroom`, the share that only one of the samples gets
        right (the mean of both directions).
    """
    samples = [mode.name for mode in modes if mode.kind == "sample"][:2]
    if len(samples) < 2 or "target" not in answers:
        return None
    alone = accuracy(answers["target"])
    greedy = [(either_right(answers, "target", name) or 0.0) - alone for name in samples]
    mean = sum(accuracy(answers[name]) for name in samples) / 2
    either = either_right(answers)
    return {
        "modes": samples,
        "draft_headroom": None if either is None else either - alone,
        "greedy_headroom": sum(greedy) / 2,
        "sampled_headroom": (either_right(answers, *samples) or 0.0) - mean,
    }


def _right(answers: Sequence[Answer]) -> list[bool]:
    return [answer.correct for answer in answers]


def _against_target(mode: Mode, answers: Answers) -> dict[str, float | None]:
    """Return the gain of a mode over the target alone, its bound, p, and share of the headroom."""
    ours, target = answers[mode.name], answers["target"]
    gain = accuracy(ours) - accuracy(target)
    headroom = (either_right(answers) or 0.0) - accuracy(target)
    return {
        "gain": gain,
        "gain_bound95": difference_bound(_right(ours), _right(target)),
        "mcnemar": mcnemar(_right(ours), _right(target)),
        "share_of_headroom": gain / headroom if headroom > 0 else None,
    }


def _against_strict(mode: Mode, answers: Answers) -> dict[str, float]:
    """Return ratios to strict: tokens per pass, tokens per second, and the median item's seconds."""
    ours, strict = answers[mode.name], answers["strict"]
    figures, theirs = (summarise([None] * len(some), some) for some in (ours, strict))
    return {
        "tokens_per_target_pass": figures["tokens_per_target_pass"]
        / theirs["tokens_per_target_pass"],
        "tokens_per_second": figures["tokens_per_second"] / theirs["tokens_per_second"],
        "seconds_per_item_median": median(
            a.seconds / b.seconds for a, b in zip(ours, strict, strict=True)
        ),
    }
