"""Drafting with a smaller language model that shares the target's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ..engines.protocol import Decoder, StepOutput
from ..prefill import prefill
from .protocol import no_evidence


class ModelDrafter:
    """Proposes the draft model's greedy continuation.

    Args:
        decoder: an empty decoder of the draft.
        chunk: tokens per pass while it reads a long context.
        collect: keep what the draft saw, for an arbiter.
    """

    def __init__(self, decoder: Decoder, chunk: int, *, collect: bool = False) -> None:
        self._collect = collect
        self._seen: list[dict[str, Any]] = []
        self._decoder = decoder
        self._chunk = chunk

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Read what is new in `tokens`, then draft `count` tokens one by one.

        The last drafted token is not fed: whether it stands is the target's decision. When a whole
        block was accepted, the next call therefore reads two tokens, that one and the target's bonus.
        """
        decoder = self._decoder
        self._seen.clear()
        prefill(decoder, tokens, len(tokens) - 1, self._chunk)
        drafted: list[int] = []
        fresh = list(tokens[decoder.length :])
        while len(drafted) < count:
            row = decoder.step(fresh)
            token = int(row.token[-1])
            if self._collect:
                self._seen.append(_last_row(row))
            drafted.append(token)
            fresh = [token]
        return drafted

    def evidence(self, count: int) -> StepOutput:
        """Return the draft's rows before each of the first `count` drafted tokens."""
        if not self._collect:
            raise no_evidence()
        rows = self._seen[:count]
        return StepOutput(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def rollback(self, length: int) -> None:
        """Drop the keys and values of tokens that were not accepted."""
        self._decoder.truncate(min(self._decoder.length, length))


def _last_row(output: StepOutput) -> dict[str, Any]:
    """Copy the last row of each array: the next step of the same width overwrites the buffers."""
    arrays = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: array[-1].copy() for name, array in arrays.items() if array is not None}
