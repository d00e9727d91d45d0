"""Penalties on tokens that occurred before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .params import SamplingParams


class Penalties:
    """Makes tokens that occurred before less likely, and counts them as the text grows.

    Args:
        params: strengths of the penalties.
        prompt: tokens of the prompt.
        vocab_size: width of the logits.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._in_prompt = np.zeros(vocab_size, dtype=np.bool_)
        self._in_prompt[np.asarray(prompt, dtype=np.int64)] = True
        self._in_output = np.zeros(vocab_size, dtype=np.int64)
        self.active = (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )

    def add(self, tokens: Sequence[int]) -> None:
        """Count tokens that were added to the output."""
        np.add.at(self._in_output, np.asarray(tokens, dtype=np.int64), 1)

    def remove(self, tokens: Sequence[int]) -> None:
        """Undo an `add` of the same tokens."""
        np.subtract.at(self._in_output, np.asarray(tokens, dtype=np.int64), 1)

    def apply(self, logits: NDArray[np.float64]) -> None:
        """Change a row of logits [V] in place."""
        output = np.flatnonzero(self._in_output)
        penalty = self._params.repetition_penalty
        if penalty != 1:
            seen = np.flatnonzero(self._in_prompt | (self._in_output > 0))
            values = logits[seen]
            logits[seen] = np.where(values < 0, values * penalty, values / penalty)
        logits[output] -= self._params.frequency_penalty * self._in_output[output]
        logits[output] -= self._params.presence_penalty
