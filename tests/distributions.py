"""Decoders whose rows are distributions over a small vocabulary, and what is to be expected of draws.

Import it from any test (`from distributions import DistributionDecoder`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cospec.runtime.engines.protocol import StepOutput

Row = Callable[[Sequence[int]], NDArray[np.float32]]
"""A model: every token so far -> logits [V] of the next."""


def random_rows(seed: int, vocab_size: int, spread: float = 1.5) -> Row:
    """Return a model with logits drawn anew for each context of the last two tokens."""

    made: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def row(context: Sequence[int]) -> NDArray[np.float32]:
        key = tuple(context[-2:])
        if key not in made:
            rng = np.random.default_rng(crc32(repr((seed, *key)).encode()))
            made[key] = (spread * rng.standard_normal(vocab_size)).astype(np.float32)
        return made[key]

    return row


def near(other: Row, seed: int, vocab_size: int, noise: float) -> Row:
    """Return a model whose logits are those of `other` with noise: a draft."""
    wrong = random_rows(seed, vocab_size, noise)
    return lambda context: other(context) + wrong(context)


class DistributionDecoder:
    """A `Decoder` that returns logits and their largest as the token."""

    def __init__(self, row: Row, capacity: int = 1000) -> None:
        self.capacity = capacity
        self.cache: list[int] = []
        self._row = row

    @property
    def length(self) -> int:
        return len(self.cache)

    def step(
        self, tokens: Sequence[int] | NDArray[np.int64], rows: int | None = None
    ) -> StepOutput:
        found = []
        for token in tokens:
            self.cache.append(int(token))
            found.append(self._row(self.cache))
        logits = np.stack(found[-(rows or len(found)) :])
        return StepOutput(token=logits.argmax(axis=1), logits=logits)

    def select(self, outputs: tuple[str, ...]) -> None:
        assert set(outputs) <= {"token", "logits"}

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.cache[length:]


def expected(
    row: Row,
    probabilities: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    prompt: Sequence[int],
    vocab_size: int,
    length: int,
) -> dict[tuple[int, ...], float]:
    """Return the probability of each output of `length` tokens."""
    found = {}
    for output in itertools.product(range(vocab_size), repeat=length):
        probability = 1.0
        for i, token in enumerate(output):
            probability *= float(probabilities(row([*prompt, *output[:i]]))[token])
        found[output] = probability
    return found


def chi_square_p(counts: dict[tuple[int, ...], int], wanted: dict[tuple[int, ...], float]) -> float:
    """Return the p-value of Pearson's test; cells that expect fewer than five draws are merged."""
    import torch

    n = sum(counts.values())
    assert all(wanted.get(cell, 0.0) > 0 for cell in counts), "an impossible output"
    big = [cell for cell, p in wanted.items() if n * p >= 5]
    pairs = [(counts.get(cell, 0), n * wanted[cell]) for cell in big]
    rest = (n - sum(seen for seen, _ in pairs), n - sum(want for _, want in pairs))
    if rest[1] > 1e-6:
        pairs.append(rest)
    statistic = sum((seen - want) ** 2 / want for seen, want in pairs)
    halves = torch.tensor([(len(pairs) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))
