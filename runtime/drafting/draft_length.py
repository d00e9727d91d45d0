"""How many tokens to draft: as many as pay for themselves, and none where speculation loses.

A round that drafts k tokens costs k draft steps and one verify pass k+1 wide, and yields the accepted
tokens and one of the target's own. The controller knows these costs (`costs.py`), sees how
often the draft is accepted at each position, and takes the k with the most tokens per second; 0 is
plain decoding, from which it comes back by trying a token now and then. Where the drafter says how sure
it is of each token, a block ends as soon as the next token promises less than it costs.
The model of the yield is that of Leviathan et al. (2023), with an acceptance of its own at each
position. In `strict` mode the output does not depend on k, so measuring cannot change it.
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
"""What an older observation of acceptance weighs against the next: about the last 50 rounds count."""

PRIOR_ROUNDS, PRIOR_ACCEPTANCE = 2.0, 0.6
"""Before anything was seen, speculation is believed to be worth a try; real rounds soon outweigh it."""

POOLING = 8.0
"""Rounds that the mean over all positions weighs at each of them: the later ones are seen rarely."""

FIRST_ROUNDS, FIRST_LENGTH = 2, 3
"""Rounds in which nothing is known, and tokens to draft in them: more cost more than they teach."""

SPEED_WINDOW = 9
"""Rounds whose median tells how fast the machine is now: a slow one on a busy machine is no trend."""

MARGIN = 1.02
"""Speculation must promise this much more than plain decoding: a tie is not worth the variance."""

PROBE_SHARE = 0.0125
"""Share of the time that trying speculation again may lose: the dearer a try, the rarer it is."""

PLAIN_ROUNDS = 8.0
"""Plain rounds before a try, and more if the last one was dear."""

PROBE_EVIDENCE = 3.0
"""Rounds that all older evidence weighs when a try is judged: two or three successes turn it over."""


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
        acceptance: as for `expected_tokens`; its length is the most to draft.
        margin: what drafting must gain over plain decoding to be preferred to it.
        least: tokens to draft at least.
    """
    rates = [tokens / costs.of_round(k) for k, tokens in enumerate(expected_tokens(acceptance))]
    best = max(range(least, len(rates)), key=rates.__getitem__)
    return best if least or rates[best] > margin * rates[0] else 0


def pays_to_go_on(
    costs: Costs, drafted: int, reached: float, acceptance: float, rate: float
) -> bool:
    """Say whether drafting more tokens promises more than it costs.

    Args:
        costs: of the parts of a round.
        drafted: tokens that the block has already.
        reached: the probability that all of them are accepted.
        acceptance: of a token of which nothing is known yet.
        rate: tokens per second that the time would bring otherwise.
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
    """Chooses the draft length of each round from what the rounds before it showed.

    One object serves all generations of a session, so what one has learned the next one knows.

    Attributes:
        measured: the costs as they were when nothing else ran; later rounds tell how much faster or
            slower everything is by now, so that widths which are not in use stay comparable.
    """

    measured: Costs
    _reached: list[float] = field(init=False)
    _accepted: list[float] = field(init=False)
    _draft_speed: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=SPEED_WINDOW))
    _verify_speed: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=SPEED_WINDOW))
    _calibration: Calibration = field(default_factory=lambda: Calibration(MEMORY))
    _confidences: list[float] = field(default_factory=list)
    _hears: bool = False
    _speculates: bool = False
    _now: Costs = field(init=False)
    _rate: float = 0.0
    _prior: float = PRIOR_ROUNDS
    _rounds: int = 0
    _plain_rounds: int = 0
    _is_probing: bool = False
    _tries: int = 0
    _pause: float = PLAIN_ROUNDS

    def __post_init__(self) -> None:
        """Begin with nothing seen."""
        self._reached = [0.0] * self.longest
        self._accepted = [0.0] * self.longest
        self._now = self.measured

    @property
    def longest(self) -> int:
        """Tokens to draft a round at most."""
        return len(self.measured.verify) - 1

    @property
    def acceptance(self) -> list[float]:
        """By position, how often the draft's token was accepted of late where it was reached."""
        pooled = self._pooled
        pairs = zip(self._accepted, self._reached, strict=True)
        return [(a + POOLING * pooled) / (r + POOLING) for a, r in pairs]

    @property
    def _pooled(self) -> float:
        """How often a token was accepted of late, wherever it stood; at first what was believed."""
        believed = self._prior * PRIOR_ACCEPTANCE
        return (sum(self._accepted) + believed) / (sum(self._reached) + self._prior)

    def length(self) -> int:
        """Return how many tokens to draft in the next round."""
        self._confidences.clear()
        self._speculates = False
        if self._rounds < FIRST_ROUNDS:
            return min(FIRST_LENGTH, self.longest)
        acceptance, self._now = self.acceptance, self.costs()
        best = best_length(self._now, acceptance)
        if best > 0:
            self._is_probing = False
            self._speculates = True
            self._rate = expected_tokens(acceptance)[best] / self._now.of_round(best)
            return self.longest if self._hears else best
        if not self._is_probing and self._plain_rounds >= self._pause:
            self._is_probing, self._tries, self._pause = True, 0, PLAIN_ROUNDS
        return 1 if self._is_probing else 0

    def drafted(self, confidence: float) -> bool:
        """Hear how sure the drafter is of a token that it drafted; say whether it should go on.

        Args:
            confidence: the draft's probability of the token.
        """
        self._hears = True
        self._confidences.append(confidence)
        if not self._speculates:
            return True
        reached = prod(map(self._calibration.acceptance, self._confidences))
        known = len(self._confidences)
        return pays_to_go_on(self._now, known, reached, self._pooled, self._rate)

    def costs(self) -> Costs:
        """Return what the parts of a round cost now."""
        draft, verify = median(self._draft_speed), median(self._verify_speed)
        return Costs(
            draft_step=self.measured.draft_step * draft,
            verify=[seconds * verify for seconds in self.measured.verify],
        )

    def record(
        self, drafted: int, accepted: int, draft_seconds: float, width: int, verify_seconds: float
    ) -> None:
        """Take in a finished round.

        Args:
            drafted: tokens that were proposed.
            accepted: how many of them stand.
            draft_seconds: that proposing took, reading what was new included.
            width: tokens in the verify pass.
            verify_seconds: that it took.
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
            costs, self._tries = self.costs(), self._tries + 1
            lost = costs.of_round(1) / costs.verify[0] - 1 - accepted  # in plain rounds
            self._pause += lost / PROBE_SHARE
            # A success is followed up at once, until there are enough of them to decide.
            self._is_probing = accepted > 0 and self._tries < PROBE_EVIDENCE
        self._calibration.record(self._confidences[: accepted + 1], accepted)
        for position in range(min(drafted, accepted + 1, self.longest)):
            self._reached[position] = MEMORY * self._reached[position] + 1
            self._accepted[position] = MEMORY * self._accepted[position] + (position < accepted)

    def _forget(self) -> None:
        """Let all that was seen before weigh no more than a few rounds."""
        share = min(1.0, PROBE_EVIDENCE / max(PROBE_EVIDENCE, *self._reached))
        self._prior = 0.0
        self._calibration = Calibration(MEMORY)
        self._reached = [share * reached for reached in self._reached]
        self._accepted = [share * accepted for accepted in self._accepted]
