"""Drafting by lookup where the text repeats itself, and with the draft model elsewhere.

Looking up is free and the draft model is not, but a model guesses what was never written before. A
record of what each was worth lately decides who is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines.protocol import StepOutput
from .draft_model import ModelDrafter
from .ngram import NgramDrafter
from .protocol import no_evidence

MEMORY = 0.95
"""What an older looked-up token weighs against the next: about the last twenty count."""

TRUST = 0.6
"""Share of looked-up tokens that must have been right of late: they are free to propose, but a round
that they waste yields one token."""


class CombinedDrafter:
    """Proposes what n-gram lookup finds while that is right often enough, and else asks the model.

    Lookups that are not proposed are judged too, as far as the text has come, so trust can return.

    Args:
        ngram: looks up.
        model: drafts.
    """

    def __init__(self, ngram: NgramDrafter, model: ModelDrafter) -> None:
        self._ngram = ngram
        self._model = model
        self._seen, self._right = 1.0, 1.0
        self._found: list[int] = []
        self._context = 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return up to `count` tokens from one of the two."""
        self._judge(tokens)
        self._found, self._context = self._ngram.propose(tokens, count), len(tokens)
        if self._found and self._right >= TRUST * self._seen:
            return self._found
        return self._model.propose(tokens, count)

    def evidence(self, count: int) -> StepOutput:
        """Refuse: of looked-up tokens nothing was seen but their ids."""
        raise no_evidence()

    def rollback(self, length: int) -> None:
        """Drop the model's keys and values of tokens that were not accepted."""
        self._model.rollback(length)

    def _judge(self, tokens: Sequence[int]) -> None:
        """Compare what the last lookup found with what came, up to the first difference."""
        for found, came in zip(self._found, tokens[self._context :], strict=False):
            self._seen = MEMORY * self._seen + 1
            self._right = MEMORY * self._right + (found == came)
            if found != came:
                break
