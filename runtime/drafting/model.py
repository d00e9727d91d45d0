"""Drafting with a smaller language model that shares the target's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from ..engines.protocol import Decoder
from ..prefill import prefill


class ModelDrafter:
    """Proposes the draft model's greedy continuation.

    Args:
        decoder: an empty decoder of the draft.
        chunk: tokens per pass while it reads a long context.
    """

    def __init__(self, decoder: Decoder, chunk: int) -> None:
        self._decoder = decoder
        self._chunk = chunk

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Read what is new in `tokens`, then draft `count` tokens one by one.

        The last drafted token is not fed: whether it stands is the target's decision. When a whole
        block was accepted, the next call therefore reads two tokens, that one and the target's bonus.
        """
        decoder = self._decoder
        prefill(decoder, tokens, len(tokens) - 1, self._chunk)
        drafted: list[int] = []
        fresh = list(tokens[decoder.length :])
        while len(drafted) < count:
            token = int(decoder.step(fresh).token[-1])
            drafted.append(token)
            fresh = [token]
        return drafted

    def rollback(self, length: int) -> None:
        """Drop the keys and values of tokens that were not accepted."""
        self._decoder.truncate(min(self._decoder.length, length))
