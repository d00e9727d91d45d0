"""Drafting by lookup where the text repeats itself, and with the draft model elsewhere.

Lookup is free and the draft model is not, but only a model guesses what was never written before. The
share of looked-up tokens that were right lately decides which of the two proposes.
"""

from __future__ import annotations

from collections.abc import Sequence

from .draft_model import ModelDrafter
from .ngram import NgramDrafter

MEMORY = 0.95
"""Factor by which an older token's weight shrinks with each new one: about the last twenty count."""

TRUST = 0.6
"""Share of the recent looked-up tokens that must have been right for lookup to propose."""


class CombinedDrafter:
    """Proposes what n-gram lookup finds while that is right often enough, else what the model drafts.

    Lookups that were not proposed are compared with the text too, so lookup can come back.

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

    def rollback(self, length: int) -> None:
        """Drop the model's keys and values of tokens that were not accepted."""
        self._model.rollback(length)

    def _judge(self, tokens: Sequence[int]) -> None:
        """Compare what the last lookup found with the text, up to the first difference."""
        for found, came in zip(self._found, tokens[self._context :], strict=False):
            self._seen = MEMORY * self._seen + 1
            self._right = MEMORY * self._right + (found == came)
            if found != came:
                break
