"""Decoders without a model: the next token is a pure function of the context.

Import it from any test (`from scripted import ScriptedDecoder`): pytest puts tests/ on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cospec.errors import BackendError
from cospec.runtime.engines.protocol import StepOutput

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


CANDIDATES = 4
"""Tokens of which a scripted row says that they are possible at all: the choice and those after it."""


def candidates(
    context: Sequence[int], choice: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids and logits of a row: the choice leads by a margin that depends on the context."""
    margin = 0.25 + crc32(repr(("margin", *context[-3:])).encode()) % 8 / 2
    values = np.array([margin, 0, -1, -2], dtype=np.float32) + margin
    return np.arange(choice, choice + CANDIDATES), values


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
        self.selected: list[tuple[str, ...]] = []
        self._outputs: tuple[str, ...] = ()
        self._buffers: dict[tuple[int, tuple[str, ...]], dict[str, NDArray[Any]]] = {}

    @property
    def length(self) -> int:
        return len(self.cache)

    def step(
        self, tokens: Sequence[int] | NDArray[np.int64], rows: int | None = None
    ) -> StepOutput:
        width = len(tokens)
        assert width > 0, "a pass without tokens"
        assert self.length + width <= self.capacity, "the cache overflows"
        self.steps.append(Step(self.length, tuple(int(token) for token in tokens)))
        if len(self.steps) - 1 in self.fail_at:
            raise BackendError("the scripted backend failed")
        # As in a real engine: the next step of the same width overwrites what this one returned.
        buffers = self._buffers.setdefault((width, self._outputs), self._new_buffers(width))
        for i, token in enumerate(tokens):
            self.cache.append(int(token))
            buffers["token"][i] = self.choose(self.cache)
            if self._outputs:
                fed_next = tokens[i + 1] if i + 1 < width else None
                for name, value in self._summary(int(buffers["token"][i]), fed_next).items():
                    if name in self._outputs:
                        buffers[name][i] = value
        wanted = slice(width - (rows or width), None)
        return StepOutput(**{name: array[wanted] for name, array in buffers.items()})

    def select(self, outputs: tuple[str, ...]) -> None:
        self.selected.append(outputs)
        self._outputs = outputs

    def _new_buffers(self, width: int) -> dict[str, NDArray[Any]]:
        top = ("top_values", "top_ids")
        shapes = {name: (width, CANDIDATES) if name in top else (width,) for name in self._outputs}
        buffers: dict[str, NDArray[Any]] = {
            name: np.zeros(shape, np.int64 if name == "top_ids" else np.float32)
            for name, shape in shapes.items()
        }
        return {**buffers, "token": np.zeros(width, dtype=np.int64)}

    def _summary(self, choice: int, fed_next: int | None) -> dict[str, Any]:
        """What a graph says about a row beside its token."""
        ids, values = candidates(self.cache, choice)
        norm = float(np.log(np.exp(values).sum()))
        logprobs = values - norm
        found = np.flatnonzero(ids == fed_next)
        return {
            "top_values": values,
            "top_ids": ids,
            "logsumexp": norm,
            "entropy": -(np.exp(logprobs) * logprobs).sum(),
            "next_input_logprob": logprobs[found[0]] if found.size else -30.0,
        }

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
