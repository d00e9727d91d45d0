"""Decoders without a model: the next token is a pure function of the context.

Import it from any test (`from scripted import ScriptedDecoder`): pytest puts tests/ on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cospec.runtime.engines.protocol import StepOutput
from cospec.runtime.errors import BackendError

Choose = Callable[[Sequence[int]], int]
"""The greedy choice of a model: every token so far -> the next one."""


def hashed(seed: int, vocab_size: int, order: int = 3) -> Choose:
    """Return a model that looks at the last `order` tokens; small orders run into loops."""

    def choose(context: Sequence[int]) -> int:
        return crc32(repr((seed, *context[-order:])).encode()) % vocab_size

    return choose


def agreeing(target: Choose, other: Choose, percent: int, seed: int = 0) -> Choose:
    """Return a model that chooses as `target` does on `percent` of contexts, else as `other`."""

    def choose(context: Sequence[int]) -> int:
        as_target = crc32(repr((seed, *context[-5:])).encode()) % 100 < percent
        return (target if as_target else other)(context)

    return choose


@dataclass(frozen=True)
class Step:
    """One recorded pass: how many tokens the cache held, and what was fed."""

    length: int
    tokens: tuple[int, ...]

    @property
    def width(self) -> int:
        return len(self.tokens)


class ScriptedDecoder:
    """A `Decoder` that records its steps and asserts that it is used as the protocol says.

    Args:
        choose: the model.
        capacity: tokens that the cache holds.
        fail_at: indices of the steps that raise BackendError, with nothing fed.
    """

    def __init__(self, choose: Choose, capacity: int = 1000, fail_at: Collection[int] = ()) -> None:
        self.choose = choose
        self.capacity = capacity
        self.cache: list[int] = []
        self.steps: list[Step] = []
        self.fail_at = fail_at
        self._buffers: dict[int, NDArray[np.int64]] = {}

    @property
    def length(self) -> int:
        return len(self.cache)

    def step(self, tokens: Sequence[int] | NDArray[np.int64]) -> StepOutput:
        width = len(tokens)
        assert width > 0, "a pass without tokens"
        assert self.length + width <= self.capacity, "the cache overflows"
        self.steps.append(Step(self.length, tuple(int(token) for token in tokens)))
        if len(self.steps) - 1 in self.fail_at:
            raise BackendError("the scripted backend failed")
        # As in a real engine: the next step of the same width overwrites what this one returned.
        row = self._buffers.setdefault(width, np.zeros(width, dtype=np.int64))
        for i, token in enumerate(tokens):
            self.cache.append(int(token))
            row[i] = self.choose(self.cache)
        return StepOutput(token=row)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length, f"truncate from {self.length} to {length}"
        del self.cache[length:]


def reference_decode(
    choose: Choose,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    eos_token_ids: Collection[int],
    capacity: int,
) -> tuple[list[int], str]:
    """Decode one token at a time: the output, without the prompt, and why it ends."""
    tokens = list(prompt)
    while True:
        tokens.append(choose(tokens))
        if tokens[-1] in eos_token_ids:
            return tokens[len(prompt) :], "eos"
        if len(tokens) - len(prompt) == max_tokens:
            return tokens[len(prompt) :], "length"
        if len(tokens) > capacity:
            return tokens[len(prompt) :], "capacity"
