"""Drafting with a smaller language model that shares the target's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.prefill import prefill
from ..engines.protocol import ChainedDecoder, Decoder, StepOutput
from ..sampling.sampler import Sampler
from .protocol import no_evidence


class ModelDrafter:
    """Proposes the draft model's continuation: its most likely tokens, or the sampler's choice.

    Args:
        decoder: a decoder of the draft that holds a prefix of the context, usually nothing.
        chunk: tokens per pass while it reads a long context.
        collect: keep the draft's rows for `evidence`.
        sampler: the target's own, so that both draw with the same noise.
        watch: callback that receives the probability of each drafted token and returns False to stop
            drafting.
    """

    def __init__(
        self,
        decoder: Decoder,
        chunk: int,
        *,
        collect: bool = False,
        sampler: Sampler | None = None,
        watch: Callable[[float], bool] | None = None,
    ) -> None:
        self._sampler = sampler
        self._watch = watch
        self._collect = collect
        self._seen: dict[str, NDArray[Any]] = {}
        self._decoder = decoder
        self._chained = decoder if isinstance(decoder, ChainedDecoder) else None
        self._chunk = chunk

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Read what is new in `tokens`, then draft `count` tokens one by one.

        The last drafted token is not fed, because the target may reject it. If a whole block was
        accepted, the next call therefore reads two tokens: that one and the target's bonus token.
        """
        decoder = self._decoder
        prefill(decoder, tokens, self._chunk, 0)
        drafted: list[int] = []
        fresh = list(tokens[decoder.length :])
        if self._chained is not None and self._sampler is None and count > 0:
            rows = self._chained.draft(fresh, count)
            self._seen = _arrays(rows)
            return list(rows.token.tolist())
        while len(drafted) < count:
            if self._sampler is not None and not self._collect:
                forced = self._sampler.forced(tokens, drafted)[: count - len(drafted)]
                if forced:
                    drafted += forced
                    fresh += forced
                    continue
            row = decoder.step(fresh, rows=1)
            if self._sampler is None:
                token = int(row.token[-1])
            else:
                assert row.logits is not None
                token = self._sampler.choose(row.logits[-1], tokens, drafted)
            if self._collect:
                self._remember(row, len(drafted), count)
            drafted.append(token)
            fresh = [token]
            if self._watch is not None and not self._watch(_confidence(row)):
                break
        return drafted

    def evidence(self, count: int) -> StepOutput:
        """Return the draft's rows before each of the first `count` drafted tokens.

        They are views of buffers that the next proposal overwrites.
        """
        if not self._collect:
            raise no_evidence()
        return StepOutput(**{name: rows[:count] for name, rows in self._seen.items()})

    def rollback(self, length: int) -> None:
        """Drop the keys and values of tokens that were not accepted."""
        self._decoder.truncate(min(self._decoder.length, length))

    def _remember(self, output: StepOutput, i: int, count: int) -> None:
        """Copy the last row of `output` as row i of `count`: the next step overwrites it."""
        if i == 0 and len(self._seen.get("token", ())) < count:
            self._seen = {
                name: np.empty((count, *array.shape[1:]), dtype=array.dtype)
                for name, array in _arrays(output).items()
            }
        for name, rows in self._seen.items():
            rows[i] = getattr(output, name)[-1]


def _confidence(output: StepOutput) -> float:
    """Return the probability of the last row's most likely token."""
    assert output.top_values is not None
    assert output.logsumexp is not None
    return exp(min(0.0, float(output.top_values[-1, 0] - output.logsumexp[-1])))


def _arrays(output: StepOutput) -> dict[str, NDArray[Any]]:
    """Return the arrays of `output` that are there, by name."""
    arrays = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: array for name, array in arrays.items() if array is not None}
