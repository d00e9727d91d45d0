"""How many tokens to draft: as many as pay for themselves, and none where speculation loses.

A round that drafts k tokens costs k draft steps and one verify pass k+1 wide, and yields the accepted
tokens and one of the target's own. The guard measures these costs and how often the draft is accepted
at each position while it decodes, and takes the k with the most tokens per second; 0 is plain decoding.
The model of the yield is that of Leviathan et al. (2023), with an acceptance of its own at each
position. In `strict` mode the output does not depend on k, so measuring cannot change it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

MEMORY = 0.99
"""What an older observation of acceptance weighs against the next: about the last 100 rounds count."""

PRIOR_ROUNDS, PRIOR_ACCEPTANCE = 4.0, 0.7
"""Before anything was seen, speculation is believed to be worth trying."""

POOLING = 8.0
"""Rounds that the mean over all positions weighs at each of them: the later ones are seen rarely."""

COST_WINDOW = 9
"""Passes of one width whose median is its cost: a slow one on a busy machine is no trend."""

MARGIN = 1.02
"""Speculation must promise this much more than plain decoding: a tie is not worth the variance."""

PROBE_ROUNDS = 4
"""Rounds in a row that try speculation again after it had lost."""

PROBE_SHARE = 0.02
"""Share of the time that trying may lose: the dearer a try, the more plain rounds lie before it."""

PLAIN_ROUNDS = 16
"""Plain rounds before a try, however cheap it is."""

REMEASURE = 256
"""Rounds after which plain decoding is measured again."""


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


@dataclass
class Guard:
    """Chooses the draft length of each round from what the rounds before it measured.

    One object serves all generations of a session, so what one has measured the next one knows.

    Attributes:
        longest: tokens to draft a round at most, at least 1.
    """

    longest: int
    _reached: list[float] = field(init=False)
    _accepted: list[float] = field(init=False)
    _draft: deque[float] = field(default_factory=lambda: deque(maxlen=COST_WINDOW))
    _verify: dict[int, deque[float]] = field(default_factory=dict)
    _rounds_since_plain: int = 0
    _plain_rounds: int = 0
    _probes_left: int = 0

    def __post_init__(self) -> None:
        """Begin with nothing seen."""
        self._reached = [0.0] * self.longest
        self._accepted = [0.0] * self.longest

    @property
    def acceptance(self) -> list[float]:
        """By position, how often the draft's token was accepted of late where it was reached."""
        prior = PRIOR_ROUNDS * PRIOR_ACCEPTANCE
        pooled = (sum(self._accepted) + prior) / (sum(self._reached) + PRIOR_ROUNDS)
        pairs = zip(self._accepted, self._reached, strict=True)
        return [(a + POOLING * pooled) / (r + POOLING) for a, r in pairs]

    def length(self) -> int:
        """Return how many tokens to draft in the next round."""
        if not self._draft:
            return self.longest
        if 1 not in self._verify or self._rounds_since_plain >= REMEASURE:
            return 0
        costs, acceptance = self.costs(), self.acceptance
        best = best_length(costs, acceptance)
        if best > 0:
            return best
        k = best_length(costs, acceptance, least=1)
        if self._probes_left == 0 and self._plain_rounds >= self._rounds_between(costs, k):
            self._probes_left = PROBE_ROUNDS
        return k if self._probes_left else 0

    def _rounds_between(self, costs: Costs, k: int) -> float:
        """Return the plain rounds that must lie before a try with k tokens."""
        plain = costs.verify[0]
        loss = costs.of_round(k) - plain * expected_tokens(self.acceptance)[k]
        return max(PLAIN_ROUNDS, PROBE_ROUNDS * loss / (PROBE_SHARE * plain))

    def costs(self) -> Costs:
        """Return the measured costs; widths that were not seen are interpolated."""
        known = {width: median(window) for width, window in self._verify.items()}
        return Costs(
            draft_step=median(self._draft),
            verify=[_interpolate(known, width) for width in range(1, self.longest + 2)],
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
        self._verify.setdefault(width, deque(maxlen=COST_WINDOW)).append(verify_seconds)
        if drafted == 0:
            self._rounds_since_plain = 0
            self._plain_rounds += 1
            return
        self._rounds_since_plain += 1
        self._draft.append(draft_seconds / drafted)
        for position in range(min(drafted, accepted + 1)):
            self._reached[position] = MEMORY * self._reached[position] + 1
            self._accepted[position] = MEMORY * self._accepted[position] + (position < accepted)
        self._plain_rounds = 0
        self._probes_left = max(0, self._probes_left - 1)


def _interpolate(known: dict[int, float], width: int) -> float:
    """Return the cost of a width between the nearest that were measured; beyond them, theirs."""
    if width in known:
        return known[width]
    below = max((w for w in known if w < width), default=None)
    above = min((w for w in known if w > width), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        return known[nearest] if nearest is not None else 0.0
    share = (width - below) / (above - below)
    return known[below] + share * (known[above] - known[below])
