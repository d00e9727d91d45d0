"""Tokens per second of the formats, and whether drafting changes what they say.

Not every combination is timed: first each format of the target with a draft in the same format, then
the fastest targets with every draft, then the fastest of all several times more. They take turns, so
that a machine that slows down slows all of them down; of each the median counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ...errors import UsageError
from ...runtime.bundle.manifest import WeightFormat
from ...runtime.decoding.session import Session
from .texts import Text

PROMPTS, TOKENS = 4, 64
"""Prompts of a timing, and tokens that follow each."""
TARGETS = 2
"""Formats of the target that are timed with every draft."""
FINALISTS, ROUNDS = 4, 5


@dataclass
class Combination:
    """A format for each role, and its times.

    Attributes:
        target: the target's format.
        draft: the draft's; None for a bundle without one.
        rates: tokens per second with drafts, a figure each round.
        plain_rates: of the target alone.
        acceptance: share of drafted tokens that stand.
    """

    target: WeightFormat
    draft: WeightFormat | None
    rates: list[float] = field(default_factory=list)
    plain_rates: list[float] = field(default_factory=list)
    acceptance: float | None = None

    @property
    def rate(self) -> float:
        """Tokens per second with drafts, median."""
        return median(self.rates)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "target": self.target,
            "draft": self.draft,
            "tokens_per_second": self.rate,
            "target_only_tokens_per_second": median(self.plain_rates),
            "acceptance": self.acceptance,
            "rounds": len(self.rates),
        }


SessionOf = Callable[[WeightFormat, WeightFormat | None], Session]


def time_combinations(
    targets: Sequence[WeightFormat],
    drafts: Sequence[WeightFormat],
    session_of: SessionOf,
    texts: Sequence[Text],
) -> list[Combination]:
    """Time combinations and return those that were timed, the fastest first.

    Args:
        targets: formats of the target, at least one.
        drafts: formats of the draft; none for a bundle without one.
        session_of: a new session of the formats.
        texts: where prompts come from.
    """
    prompts = [text.prompt for text in texts[:PROMPTS]]
    timed: dict[tuple[WeightFormat, WeightFormat | None], Combination] = {}

    def add(target: WeightFormat, draft: WeightFormat | None) -> None:
        if (target, draft) not in timed:
            timed[target, draft] = Combination(target, draft)
            _time(timed[target, draft], session_of, prompts)

    def ranked() -> list[Combination]:
        return sorted(timed.values(), key=lambda combination: -combination.rate)

    for target in targets:
        add(target, target if target in drafts else next(iter(drafts), None))
    for leader in ranked()[:TARGETS]:
        for draft in drafts:
            add(leader.target, draft)
    finalists = ranked()[:FINALISTS]
    for _ in range(ROUNDS - 1):
        for combination in finalists:
            _time(combination, session_of, prompts)
    # One that was timed once cannot overtake: its figure is a single one.
    others = [combination for combination in ranked() if combination not in finalists]
    return sorted(finalists, key=lambda combination: -combination.rate) + others


def share_of_different_outputs(session: Session, texts: Sequence[Text]) -> float:
    """Return the share of texts whose prompt gives another output with drafts than without."""
    prompts = [text.prompt for text in texts]
    differing = 0
    for prompt in prompts:
        outputs = [
            session.continue_tokens(prompt, max_tokens=TOKENS, num_draft_tokens=count)
            for count in (None, 0)
        ]
        strict, plain = (stream.completion().tokens for stream in outputs)
        differing += strict != plain
    return differing / len(prompts)


def _time(
    combination: Combination, session_of: SessionOf, prompts: Sequence[Sequence[int]]
) -> None:
    """Add one round to a combination's times."""
    session = session_of(combination.target, combination.draft)
    for count in (None, 0):  # buffers of each width are made when it first occurs
        session.continue_tokens(prompts[0], max_tokens=8, num_draft_tokens=count).completion()
    rate, acceptance = rate_of(session, prompts, None)
    combination.rates.append(rate)
    combination.acceptance = acceptance
    combination.plain_rates.append(rate_of(session, prompts, 0)[0])


def rate_of(
    session: Session, prompts: Sequence[Sequence[int]], num_draft_tokens: int | None
) -> tuple[float, float | None]:
    """Return tokens per second behind the first round, which reads the prompt, and the acceptance."""
    outputs = [
        session.continue_tokens(prompt, max_tokens=TOKENS, num_draft_tokens=num_draft_tokens)
        for prompt in prompts
    ]
    stats = [stream.completion().stats for stream in outputs]
    tokens = sum(each.num_generated_tokens - each.first_round_tokens for each in stats)
    drafted = sum(each.num_draft_tokens for each in stats)
    accepted = sum(each.num_accepted_tokens for each in stats)
    seconds = sum(each.decode_seconds for each in stats)
    if not seconds:
        raise UsageError(
            "every output ends in its first round, so no speed can be measured",
            hint="give other texts or tasks",
        )
    return tokens / seconds, accepted / drafted if drafted else None
