"""Tokens per second of combinations of formats.

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
from ...export.weights.chosen_weights import WeightChoice
from ...runtime.decoding.session import Session

PROMPTS, TOKENS = 4, 64
"""Prompts of a timing, and tokens that follow each."""
TARGETS = 2
"""Formats of the target that are timed with every draft."""
FINALISTS, ROUNDS = 4, 5


@dataclass(frozen=True)
class Turn:
    """What one round of a combination showed.

    Attributes:
        rate: tokens per second with drafts.
        plain_rate: of the target alone.
        acceptance: share of drafted tokens that were accepted; None where none was drafted.
        differs: share of prompts whose output with drafts is not that of the target alone.
    """

    rate: float
    plain_rate: float
    acceptance: float | None
    differs: float


@dataclass
class Combination:
    """A format for each role, and its turns.

    Attributes:
        target: the target's format.
        draft: the draft's; None for a bundle without one.
        turns: one for each round.
    """

    target: WeightChoice
    draft: WeightChoice | None
    turns: list[Turn] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second with drafts, median."""
        return median(turn.rate for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "target": self.target,
            "draft": self.draft,
            "tokens_per_second": self.rate,
            "target_only_tokens_per_second": median(turn.plain_rate for turn in self.turns),
            "acceptance": self.turns[-1].acceptance,
            "differs": max(turn.differs for turn in self.turns),
            "rounds": len(self.turns),
        }


TakeTurn = Callable[[WeightChoice, "WeightChoice | None", int], Turn]


def most_turns(targets: int, drafts: int) -> int:
    """Return how many turns so many formats take at most."""
    combinations = targets + TARGETS * max(0, drafts - 1)
    return combinations + min(combinations, FINALISTS) * (ROUNDS - 1)


def time_combinations(
    targets: Sequence[WeightChoice], drafts: Sequence[WeightChoice], take_turn: TakeTurn
) -> list[Combination]:
    """Time combinations and return those that were timed, the fastest first.

    Args:
        targets: formats of the target, at least one.
        drafts: formats of the draft; none for a bundle without one.
        take_turn: times a combination in a round.
    """
    timed: dict[tuple[WeightChoice, WeightChoice | None], Combination] = {}

    def add(target: WeightChoice, draft: WeightChoice | None) -> None:
        if (target, draft) not in timed:
            timed[target, draft] = Combination(target, draft, [take_turn(target, draft, 0)])

    def ranked() -> list[Combination]:
        return sorted(timed.values(), key=lambda combination: -combination.rate)

    for target in targets:
        add(target, target if target in drafts else next(iter(drafts), None))
    for leader in ranked()[:TARGETS]:
        for draft in drafts:
            add(leader.target, draft)
    finalists = ranked()[:FINALISTS]
    for number in range(1, ROUNDS):
        for combination in finalists:
            combination.turns.append(take_turn(combination.target, combination.draft, number))
    # One that was timed once cannot overtake: its figure is a single one.
    others = [combination for combination in ranked() if combination not in finalists]
    return sorted(finalists, key=lambda combination: -combination.rate) + others


def take_turn(session: Session, prompts: Sequence[Sequence[int]]) -> Turn:
    """Time a session with drafts and without."""
    for count in (None, 0):  # buffers of each width are made when it first occurs
        session.continue_tokens(prompts[0], max_tokens=8, num_draft_tokens=count).completion()
    drafted, plain = (rate_of(session, prompts, count) for count in (None, 0))
    differing = sum(a != b for a, b in zip(drafted.outputs, plain.outputs, strict=True))
    return Turn(
        drafted.tokens_per_second,
        plain.tokens_per_second,
        drafted.acceptance,
        differing / len(prompts),
    )


@dataclass(frozen=True)
class Rate:
    """How fast outputs were.

    Attributes:
        tokens_per_second: after the first round of each, which reads the prompt.
        acceptance: share of drafted tokens that were accepted; None where none was drafted.
        outputs: the tokens.
    """

    tokens_per_second: float
    acceptance: float | None
    outputs: list[Sequence[int]]


def rate_of(
    session: Session, prompts: Sequence[Sequence[int]], num_draft_tokens: int | None
) -> Rate:
    """Time the outputs of some prompts.

    Raises:
        UsageError: every output ends at once, so there is nothing to time.
    """
    streams = [
        session.continue_tokens(prompt, max_tokens=TOKENS, num_draft_tokens=num_draft_tokens)
        for prompt in prompts
    ]
    outputs = [stream.completion() for stream in streams]
    stats = [output.stats for output in outputs]
    tokens = sum(each.num_generated_tokens - each.first_round_tokens for each in stats)
    drafted = sum(each.num_draft_tokens for each in stats)
    accepted = sum(each.num_accepted_tokens for each in stats)
    seconds = sum(each.decode_seconds for each in stats)
    if not seconds:
        raise UsageError(
            "every output ends in its first round, so no speed can be measured",
            hint="give other texts or tasks",
        )
    return Rate(
        tokens / seconds,
        accepted / drafted if drafted else None,
        [output.tokens for output in outputs],
    )
