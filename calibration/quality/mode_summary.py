"""From answers to figures: what one mode is worth, and whether two modes differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .modes import Mode
from .statistics import mcnemar, wilson_interval


@dataclass(frozen=True)
class Answer:
    """What one mode made of one item.

    Attributes:
        correct: whether the checker accepts it.
        tokens: tokens of the output.
        target_passes: verify passes; with `draft`, passes of the draft.
        seconds: of the call that generates, prompt included and check excluded.
        mismatches: reached positions at which the models disagreed; 0 where nothing is drafted.
        overrides: mismatches at which the draft's token stayed.
    """

    correct: bool
    tokens: int
    target_passes: int
    seconds: float
    mismatches: int
    overrides: int


def summarise(kinds: Sequence[str | None], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of one mode from its answers and their items' kinds.

    Rates are ratios of sums over all items: tokens per pass and per second weigh every token alike.
    """
    n, right = len(answers), sum(answer.correct for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    seconds = sum(answer.seconds for answer in answers)
    by_kind: dict[str, list[bool]] = {}
    for kind, answer in zip(kinds, answers, strict=True):
        if kind is not None:
            by_kind.setdefault(kind, []).append(answer.correct)
    return {
        "accuracy": right / n,
        "accuracy_ci95": list(wilson_interval(right, n)),
        "n": n,
        "tokens_per_target_pass": tokens_per_target_pass(answers),
        "target_passes_per_item": target_passes_per_item(answers),
        "tokens_per_second": tokens / seconds,
        "seconds_per_item": seconds / n,
        "tokens_per_item": tokens / n,
        "override_rate": override_rate(answers),
        "kinds": {
            kind: {"accuracy": sum(flags) / len(flags), "n": len(flags)}
            for kind, flags in sorted(by_kind.items())
        },
    }


def tokens_per_target_pass(answers: Sequence[Answer]) -> float:
    """Return the ratio of sums over all answers: speed that does not depend on the machine."""
    return sum(answer.tokens for answer in answers) / sum(a.target_passes for a in answers)


def target_passes_per_item(answers: Sequence[Answer]) -> float:
    """Return the mean passes of an answer: its cost, which a longer answer cannot hide."""
    return sum(answer.target_passes for answer in answers) / len(answers)


def override_rate(answers: Sequence[Answer]) -> float | None:
    """Return the share of reached mismatches at which the draft's token stayed."""
    mismatches = sum(answer.mismatches for answer in answers)
    return sum(answer.overrides for answer in answers) / mismatches if mismatches else None


def oracle(answers: dict[str, list[Answer]]) -> dict[str, float | None]:
    """Return how often at least one model alone is right; None unless both were played."""
    if not {"target", "draft"} <= answers.keys():
        return {"accuracy": None}
    pairs = zip(answers["target"], answers["draft"], strict=True)
    either = [target.correct or draft.correct for target, draft in pairs]
    return {"accuracy": sum(either) / len(either)}


def paired_tests(modes: Sequence[Mode], answers: dict[str, list[Answer]]) -> dict[str, float]:
    """Test every judged mode against the target, and every collab mode against every baseline."""

    def p(first: str, second: str) -> float:
        flags = [[answer.correct for answer in answers[name]] for name in (first, second)]
        return mcnemar(*flags)

    tests = {}
    for mode in modes:
        if mode.is_judged and "target" in answers:
            tests[f"{mode.name}_vs_target"] = p(mode.name, "target")
    for mode in modes:
        for other in modes:
            if mode.kind == "collab" and other.kind == "baseline":
                tests[f"{mode.name}_vs_{other.name}"] = p(mode.name, other.name)
    return tests
