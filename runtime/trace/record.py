"""A record of a generation: who chose each token, against what, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ...errors import UsageError
from ..arbitration.referee import Ground, Referee
from ..decoding.completion import Completion
from ..decoding.loop import Observation
from ..decoding.session import Session
from ..drafting.protocol import EvidenceDrafter
from ..engines.protocol import StepOutput
from .page import write_page

_CONTEXT = 8
"""Number of tokens before a candidate that are decoded with it, because they affect its spelling."""


@dataclass(frozen=True)
class Probability:
    """A model's probability of a token.

    Attributes:
        value: the probability, or an upper bound of it.
        bound: whether it is a bound: the model reported its best candidates only, and the token is not
            among them.
    """

    value: float
    bound: bool = False


@dataclass(frozen=True)
class Candidate:
    """A token that a model proposed at a position.

    Attributes:
        id: the token.
        text: its text at this position.
        draft: its probability under the draft; None without a draft model.
        target: its probability under the target.
    """

    id: int
    text: str
    draft: Probability | None
    target: Probability


@dataclass(frozen=True)
class Position:
    """One position of a block, as far as it was reached.

    Attributes:
        draft: the draft's candidate; None after the block.
        target: the target's candidate.
        score: the arbiter's score of the draft's candidate; None if the arbiter was not called or
            returned NaN.
        decided_by: what decided between two different candidates; None if they are equal, and in strict
            mode, where the target's is always chosen.
    """

    draft: Candidate | None
    target: Candidate
    score: float | None
    decided_by: Ground | None


@dataclass(frozen=True)
class TracedRound:
    """One round.

    Attributes:
        end: seconds from the start of the first round to the end of this one, without tracing.
        drafting: seconds that drafting took.
        verifying: seconds that the verify pass took.
        drafted: texts of the whole block.
        accepted: number of its tokens that were accepted.
        positions: the positions that were reached.
    """

    end: float
    drafting: float
    verifying: float
    drafted: list[str]
    accepted: int
    positions: list[Position]


class Trace:
    """Records one generation: pass it as `observer`, then `write` the page.

    Probabilities are the models' own, before any sampling parameter.

    Args:
        session: the session that generates.
    """

    outputs = ("top_values", "top_ids", "logsumexp", "next_input_logprob")
    """Outputs of both models that it reads."""

    def __init__(self, session: Session) -> None:
        self.rounds: list[TracedRound] = []
        self.prompt_tokens: tuple[int, ...] = ()
        self._session = session
        self._referee: Referee | None = None
        self._began = self._own = 0.0

    def see(self, observation: Observation) -> None:
        """Record a round."""
        now = perf_counter()
        seen = observation
        if not self.rounds:
            self.prompt_tokens = tuple(seen.tokens)
            self._began = now - seen.drafting - seen.verifying
        self._referee = seen.referee
        draft_rows = _evidence(seen)
        first = len(seen.rows.token) - len(seen.drafted) - 1
        before = list(seen.tokens[-_CONTEXT:])
        positions, texts = [], []
        for i, token in enumerate([*seen.drafted, None]):
            if i <= seen.accepted:
                view = _View(seen.rows, first + i, None if token is None else draft_rows, i)
                proposal = None if token is None else self._candidate(token, before, view, fed=True)
                choice = self._candidate(seen.verified[i], before, view)
                differ = token not in (None, seen.verified[i])
                score, ground = _judgement(seen, i) if differ else (None, None)
                positions.append(Position(proposal, choice, score, ground))
            if token is not None:
                texts.append(self._spelling(token, before))
                before = [*before[1:], token]
        self.rounds.append(
            TracedRound(
                now - self._began - self._own,
                seen.drafting,
                seen.verifying,
                texts,
                seen.accepted,
                positions,
            )
        )
        self._own += perf_counter() - now

    def to_json(self, completion: Completion) -> dict[str, Any]:
        """Return the contents of the page as plain values.

        Args:
            completion: of the recorded generation.

        Raises:
            UsageError: the completion is of another generation.
        """
        rounds: list[dict[str, Any]] = []
        text = self._session.codec.stream(self.prompt_tokens)
        chosen = zip(completion.tokens, completion.provenance, strict=True)
        for each in self.rounds:
            # A stop text may have cut the last round.
            pairs = list(zip(each.positions, chosen, strict=False))
            if any(not _holds(position, token) for position, (token, _) in pairs):
                raise UsageError("this trace is of another generation than the completion")
            rounds.append(
                {
                    **asdict(each),
                    "positions": [
                        {**asdict(position), "id": token, "text": text.push([token]), "who": who}
                        for position, (token, who) in pairs
                    ],
                }
            )
        if rounds and rounds[-1]["positions"]:
            rounds[-1]["positions"][-1]["text"] += text.finish()
        if sum(len(each["positions"]) for each in rounds) != len(completion.tokens):
            raise UsageError("this trace is of another generation than the completion")
        return {
            "prompt": self._session.codec.decode(self.prompt_tokens),
            "threshold": None if self._referee is None else self._referee.threshold,
            "caps": None if self._referee is None else asdict(self._referee.caps),
            "finish_reason": completion.finish_reason,
            "stats": completion.stats.to_json(),
            "rounds": rounds,
        }

    def write(self, path: str | Path, completion: Completion) -> None:
        """Write the page, whole or not at all.

        Raises:
            UsageError: see `to_json`.
            ResourceError: the file cannot be written.
        """
        write_page(path, [self.to_json(completion)])

    def _candidate(
        self, token: int, before: Sequence[int], view: _View, *, fed: bool = False
    ) -> Candidate:
        """Return both models' probabilities of a token; `fed` if it is the target's next input."""
        by_target = probability(view.target, view.target_row, token)
        if fed and view.target.next_input_logprob is not None:  # known even of unlikely ones
            by_target = Probability(math.exp(view.target.next_input_logprob[view.target_row]))
        by_draft = None if view.draft is None else probability(view.draft, view.draft_row, token)
        return Candidate(token, self._spelling(token, before), by_draft, by_target)

    def _spelling(self, token: int, before: Sequence[int]) -> str:
        """Return the text of a token after others, or the name of a special token."""
        stream = self._session.codec.stream(before)
        return stream.push([token]) + stream.finish() or self._session.codec.spelling(token)


@dataclass(frozen=True)
class _View:
    """Both models' rows before a position; `draft` is None if there are none."""

    target: StepOutput
    target_row: int
    draft: StepOutput | None
    draft_row: int


def probability(rows: StepOutput, i: int, token: int) -> Probability:
    """Return the probability of a token in row i, from the logits or from the best candidates."""
    assert rows.logsumexp is not None
    assert rows.top_ids is not None
    assert rows.top_values is not None
    total = float(rows.logsumexp[i])
    if rows.logits is not None:
        return Probability(math.exp(float(rows.logits[i, token]) - total))
    for j, candidate in enumerate(rows.top_ids[i].tolist()):
        if candidate == token:
            return Probability(math.exp(float(rows.top_values[i, j]) - total))
    return Probability(math.exp(float(rows.top_values[i, -1]) - total), bound=True)


def _evidence(seen: Observation) -> StepOutput | None:
    """Return the draft's rows of a block, or None if there are none."""
    if not (seen.drafted and isinstance(seen.drafter, EvidenceDrafter)):
        return None
    rows = seen.drafter.evidence(len(seen.drafted))
    return rows if rows.logsumexp is not None else None


def _judgement(seen: Observation, i: int) -> tuple[float | None, Ground | None]:
    """Return the score at a mismatch that was reached, and what decided it."""
    referee = seen.referee
    if referee is None:
        return None, None
    score = None if referee.scores is None else float(referee.scores[i])
    if score is not None and math.isnan(score):
        score = None  # JSON has no word for it
    return score, "score" if i < seen.accepted else referee.refused_for


def _holds(position: Position, token: int) -> bool:
    """Return whether a token is one of a position's candidates."""
    return token in (position.target.id, None if position.draft is None else position.draft.id)
