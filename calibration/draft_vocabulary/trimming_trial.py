"""What trimming costs and yields on texts that were held out: acceptance, speed, the draft's step.

Both drafts serve the same target and take turns, so that a machine that slows down slows both down; of
every time the median counts. The target's output is the same with either, and so are the positions at
which a draft is asked but for where its own block began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ...runtime.decoding.session import Session
from ...runtime.drafting.costs import CONTEXT, time_passes
from ...runtime.engines.protocol import Decoder, Engine
from ..weights.format_speed import ROUNDS, rate_of

STEPS = 20
"""Steps of a draft that are timed in a round."""


@dataclass
class Times:
    """What was measured of one draft.

    Attributes:
        rates: tokens per second with this draft, a figure each round.
        steps: seconds of the draft's step of one token, from all rounds.
        acceptance: share of drafted tokens that stand; None if none was drafted.
    """

    rates: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    acceptance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "acceptance": self.acceptance,
            "tokens_per_second": median(self.rates),
            "draft_step_seconds": median(self.steps),
        }


def measure(
    source: Session,
    target: Engine,
    drafts: Mapping[str, Engine],
    prompts: Sequence[Sequence[int]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Let drafts take turns; return the figures of each by name.

    Args:
        source: a session of the bundle, for what both have in common.
        target: whose output is drafted.
        drafts: engines by name.
        prompts: what outputs follow.
        say: told of each round.

    Raises:
        UsageError: every output ends at once, so there is nothing to time.
        BackendError: an engine fails.
    """
    times = {name: Times() for name in drafts}
    decoders = {name: engine.decoder() for name, engine in drafts.items()}
    for decoder in decoders.values():
        _time_steps(decoder, 2)  # buffers are made in the first
    for number in range(ROUNDS):
        say(f"measuring on {len(prompts)} held-out texts, round {number + 1} of {ROUNDS}")
        for name, engine in drafts.items():
            session = Session(source.manifest, target, engine, source.codec)
            # Buffers of each width are made when it first occurs.
            session.continue_tokens(prompts[0], max_tokens=8).completion()
            rate, acceptance = rate_of(session, prompts, None)
            times[name].rates.append(rate)
            times[name].acceptance = acceptance
        for name, decoder in decoders.items():
            times[name].steps += _time_steps(decoder, STEPS)
    return {name: each.to_json() for name, each in times.items()}


def _time_steps(decoder: Decoder, count: int) -> list[float]:
    """Return the seconds of steps of one token behind a short context."""
    context = min(CONTEXT, decoder.capacity // 2)
    (seconds,) = time_passes(decoder, context, range(1, 2), count)
    return seconds
