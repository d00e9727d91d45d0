"""How many tokens to draft per round: the number with the most tokens per second.

A round that drafts k tokens costs k draft steps and one verify pass of width k+1. It yields the
accepted tokens and one token of the target. The controller knows these costs (`costs.py`) and observes
how often the draft is accepted at each position. k = 0 is plain decoding; from there the controller
returns by drafting one token now and then. If the drafter reports its probability of each token, a
block ends as soon as the next token is expected to gain less than it costs.

The model of the yield is that of Leviathan et al. (2023), with a separate acceptance for each position.
In `strict` mode the output does not depend on k, so choosing k by measured times cannot change it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from statistics import median

from .confidence import Calibration

LONGEST_AUTO_DRAFT = 8
"""Most tokens to draft per round if the controller chooses."""

MEMORY = 0.98
"""Factor by which the weight of older rounds shrinks with each new one: about the last 50 count."""

PRIOR_ROUNDS, PRIOR_ACCEPTANCE = 2.0, 0.6
"""Prior of the acceptance, and its weight in rounds: it makes the controller try speculation."""

POOLING = 8.0
"""Weight of the mean over all positions at each of them, in rounds: late ones are rarely reached."""

FIRST_ROUNDS, FIRST_LENGTH = 2, 3
"""Number of first rounds without a choice, and tokens to draft in them."""

SPEED_WINDOW = 9
"""Rounds in the median of the machine's current speed, so that one slow round has no effect."""

MARGIN = 1.02
"""Minimum gain of speculation over plain decoding, as a factor."""

PROBE_SHARE = 0.0125
"""Share of the time that probes may cost: expensive probes run less often."""

PLAIN_ROUNDS = 8.0
"""Plain rounds before a probe; more after an expensive one."""

PROBE_EVIDENCE = 3.0
"""Weight of all older rounds when a probe is evaluated: two or three successes outweigh it."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a round.

    Attributes:
        draft_step: one step of the draft.
        verify: a pass of the target by width; `verify[0]` is plain decoding.
    """

    draft_step: float
    verify: Sequence[float]

    def of_round(self, drafted: int) -> float:
        """Return the seconds of a round that drafts so many tokens."""
        return drafted * self.draft_step + self.verify[drafted]


def expected_tokens(acceptance: Sequence[float]) -> list[float]:
    """Return the expected tokens of a round that drafts 0, 1, ... len(acceptance) tokens.

    Args:
        acceptance: by position, the probability that its token is accepted if it is reached.
    """
    expected, reached = [1.0], 1.0
    for probability in acceptance:
        reached *= probability
        expected.append(expected[-1] + reached)
    return expected


def best_length(
    costs: Costs, acceptance: Sequence[float], margin: float = MARGIN, least: int = 0
) -> int:
    """Return how many tokens to draft for the most tokens per second.

    Args:
        costs: of the parts of a round.
        acceptance: as for `expected_tokens`; its length is the most tokens to draft.
        margin: minimum gain over plain decoding, as a factor.
        least: fewest tokens to draft.
    """
    rates = [tokens / costs.of_round(k) for k, tokens in enumerate(expected_tokens(acceptance))]
    best = max(range(least, len(rates)), key=rates.__getitem__)
    return best if least or rates[best] > margin * rates[0] else 0


def pays_to_go_on(
    costs: Costs, drafted: int, reached: float, acceptance: float, rate: float
) -> bool:
    """Return whether drafting more tokens is expected to gain more than it costs.

    Args:
        costs: of the parts of a round.
        drafted: tokens in the block so far.
        reached: probability that all of them are accepted.
        acceptance: probability that a further token is accepted.
        rate: tokens per second that the same time yields otherwise.
    """
    gained = 0.0
    for more in range(1, len(costs.verify) - drafted):
        reached *= acceptance
        gained += reached
        if gained > rate * (costs.of_round(drafted + more) - costs.of_round(drafted)):
            return True
    return False


@dataclass
class DraftLengthController:
    """Chooses the draft length of each round from the acceptance and times of earlier rounds.

    One object serves all generations of a session and keeps what it has learned.

    Attributes:
        measured: costs that were measured for all widths. Later rounds scale them by how much faster or
            slower the machine is now, so that unused widths stay comparable.
    """

    measured: Costs
    _reached: list[float] = field(init=False)
    _accepted: list[float] = field(init=False)
    _draft_speed: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=SPEED_WINDOW))
    _verify_speed: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=SPEED_WINDOW))
    _calibration: Calibration = field(default_factory=lambda: Calibration(MEMORY))
    _confidences: list[float] = field(default_factory=list)
    _has_confidences: bool = False
    _is_speculating: bool = False
    _now: Costs = field(init=False)
    _rate: float = 0.0
    _prior: float = PRIOR_ROUNDS
    _rounds: int = 0
    _plain_rounds: int = 0
    _is_probing: bool = False
    _probes: int = 0
    _pause: float = PLAIN_ROUNDS

    def __post_init__(self) -> None:
        """Start without observations."""
        self._reached = [0.0] * self.longest
        self._accepted = [0.0] * self.longest
        self._now = self.measured

    @property
    def longest(self) -> int:
        """Tokens to draft a round at most."""
        return len(self.measured.verify) - 1

    @property
    def acceptance(self) -> list[float]:
        """Recent acceptance by position, of tokens that were reached."""
        pooled = self._pooled
        pairs = zip(self._accepted, self._reached, strict=True)
        return [(a + POOLING * pooled) / (r + POOLING) for a, r in pairs]

    @property
    def _pooled(self) -> float:
        """Recent acceptance over all positions; at first the prior."""
        believed = self._prior * PRIOR_ACCEPTANCE
        return (sum(self._accepted) + believed) / (sum(self._reached) + self._prior)

    def length(self) -> int:
        """Return how many tokens to draft in the next round."""
        self._confidences.clear()
        self._is_speculating = False
        if self._rounds < FIRST_ROUNDS:
            return min(FIRST_LENGTH, self.longest)
        acceptance, self._now = self.acceptance, self.costs()
        best = best_length(self._now, acceptance)
        if best > 0:
            self._is_probing = False
            self._is_speculating = True
            self._rate = expected_tokens(acceptance)[best] / self._now.of_round(best)
            return self.longest if self._has_confidences else best
        if not self._is_probing and self._plain_rounds >= self._pause:
            self._is_probing, self._probes, self._pause = True, 0, PLAIN_ROUNDS
        return 1 if self._is_probing else 0

    def drafted(self, confidence: float) -> bool:
        """Record the draft's probability of a drafted token; return whether to draft another.

        Args:
            confidence: that probability.
        """
        self._has_confidences = True
        self._confidences.append(confidence)
        if not self._is_speculating:
            return True
        reached = prod(map(self._calibration.acceptance, self._confidences))
        known = len(self._confidences)
        return pays_to_go_on(self._now, known, reached, self._pooled, self._rate)

    def costs(self) -> Costs:
        """Return the current costs of the parts of a round."""
        draft, verify = median(self._draft_speed), median(self._verify_speed)
        return Costs(
            draft_step=self.measured.draft_step * draft,
            verify=[seconds * verify for seconds in self.measured.verify],
        )

    def record(
        self, drafted: int, accepted: int, draft_seconds: float, width: int, verify_seconds: float
    ) -> None:
        """Add the observations of a finished round.

        Args:
            drafted: number of proposed tokens.
            accepted: how many of them were accepted.
            draft_seconds: time of drafting, including reading new tokens.
            width: tokens in the verify pass.
            verify_seconds: time of the verify pass.
        """
        self._rounds += 1
        if width <= len(self.measured.verify):
            self._verify_speed.append(verify_seconds / self.measured.verify[width - 1])
        if drafted == 0:
            self._plain_rounds += 1
            return
        self._plain_rounds = 0
        self._draft_speed.append(draft_seconds / drafted / self.measured.draft_step)
        self._prior *= MEMORY
        if self._is_probing:
            self._forget()
            costs, self._probes = self.costs(), self._probes + 1
            lost = costs.of_round(1) / costs.verify[0] - 1 - accepted  # in plain rounds
            self._pause += lost / PROBE_SHARE
            # After a success the next probe follows at once, until there are enough to decide.
            self._is_probing = accepted > 0 and self._probes < PROBE_EVIDENCE
        self._calibration.record(self._confidences[: accepted + 1], accepted)
        for position in range(min(drafted, accepted + 1, self.longest)):
            self._reached[position] = MEMORY * self._reached[position] + 1
            self._accepted[position] = MEMORY * self._accepted[position] + (position < accepted)

    def _forget(self) -> None:
        """Reduce the weight of all earlier rounds to a few rounds."""
        share = min(1.0, PROBE_EVIDENCE / max(PROBE_EVIDENCE, *self._reached))
        self._prior = 0.0
        self._calibration = Calibration(MEMORY)
        self._reached = [share * reached for reached in self._reached]
        self._accepted = [share * accepted for accepted in self._accepted]
