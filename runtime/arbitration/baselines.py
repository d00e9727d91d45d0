"""Baselines: published rules for mismatches, as arbiters that the learned one is compared with.

Like the learned arbiter they decide at mismatches only and within the caps of `referee.py`, so that a
comparison compares the rules alone. Scores are 1 for keep and 0 for reject; any threshold between the
two gives the same decisions.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from random import Random
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..engines.protocol import StepOutput
from .protocol import Arbiter, Block

Scores = NDArray[np.float32]
_TOP_OF_TARGET = ("top_values", "logsumexp")


@dataclass(frozen=True)
class AlwaysDraft:
    """Keeps every draft token: an upper bound of the speed, with about the draft's own accuracy."""

    target_outputs: ClassVar[tuple[str, ...]] = ()
    draft_outputs: ClassVar[tuple[str, ...]] = ()

    def score(self, block: Block) -> Scores:
        """Return ones [k]."""
        return np.ones(len(block.drafted), dtype=np.float32)


@dataclass(frozen=True)
class RandomArbiter:
    """Keeps each mismatch with a fixed probability: the value of an override rate without judgement.

    Args:
        rate: that probability.
        seed: of the draws; the same seed and blocks give the same decisions.
    """

    rate: float
    seed: int | str = 0
    target_outputs: ClassVar[tuple[str, ...]] = ()
    draft_outputs: ClassVar[tuple[str, ...]] = ()
    _random: Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _within("rate", self.rate, 0, 1)
        draws = Random(self.seed)  # noqa: S311 - an experiment, not a secret
        object.__setattr__(self, "_random", draws)

    def score(self, block: Block) -> Scores:
        """Return [k], 1 with the probability `rate`."""
        draws = [self._random.random() < self.rate for _ in block.drafted]
        return np.array(draws, dtype=np.float32)


@dataclass(frozen=True)
class TypicalAcceptance:
    """Typical acceptance (Medusa, Cai et al., 2024): p_target(d) > min(epsilon, alpha * exp(-H)).

    H is the target's entropy in nats. Medusa applies the rule to sampled candidates of its own heads
    and, at temperature 0, falls back to exact match. Here the rule is applied to mismatches only, with
    the target's distribution at temperature 1.
    """

    epsilon: float = 0.3
    alpha: float = 0.09
    target_outputs: ClassVar[tuple[str, ...]] = ("next_input_logprob", "entropy")
    draft_outputs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _within("epsilon", self.epsilon, 0, 1)
        _within("alpha", self.alpha, 0, 1)

    def score(self, block: Block) -> Scores:
        """Return [k], 1 where the draft's token is typical of the target."""
        bar = np.minimum(self.epsilon, self.alpha * np.exp(-_read(block.target, "entropy")))
        return _as_scores(np.exp(_read(block.target, "next_input_logprob")) > bar)


@dataclass(frozen=True)
class RelaxedTopK:
    """Relaxed acceptance (TensorRT-LLM, `relaxed_topk` and `relaxed_delta` of its MTP decoding).

    The draft's token is kept if it is among the target's `top_n` candidates and at most `delta` less
    probable than the target's choice. TensorRT-LLM uses the rule only in the thinking phase of
    reasoning models, with 10 and 0.6; here it is used everywhere. `top_n` cannot exceed the number of
    candidates in the bundle's graphs (`summary_top`).
    """

    top_n: int = 3
    delta: float = 0.2
    target_outputs: ClassVar[tuple[str, ...]] = ("top_ids", "next_input_logprob", *_TOP_OF_TARGET)
    draft_outputs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _within("top_n", self.top_n, 1, 1 << 20)
        _within("delta", self.delta, 0, 1)

    def score(self, block: Block) -> Scores:
        """Return [k], 1 where the draft's token is a close candidate of the target.

        Raises:
            UsageError: the graphs give fewer than `top_n` candidates.
        """
        ids = _read(block.target, "top_ids")
        if self.top_n > ids.shape[1]:
            raise UsageError(
                f"relaxed acceptance among {self.top_n} candidates, but the bundle's graphs give "
                f"{ids.shape[1]}",
                hint=f"use a top_n of at most {ids.shape[1]}",
            )
        candidate = (ids[:, : self.top_n] == block.drafted[:, None]).any(axis=1)
        best = _top_probabilities(block.target)[:, 0]
        close = np.exp(_read(block.target, "next_input_logprob")) >= best - self.delta
        return _as_scores(candidate & close)


@dataclass(frozen=True)
class FlyDeferred:
    """Entropy-gated deferred acceptance (FLy, arXiv 2511.22972, by the first author of the method).

    A mismatch is kept only if the next `window - 1` drafted tokens of the block all match, which shows
    that it was harmless. So no mismatch among the block's last `window - 1` positions is kept, and none
    at which the target's entropy is below `entropy`. As in the published code, that is the entropy in
    nats of the three largest probabilities, not renormalised.

    Published with blocks of 15 and a window of 6. A window wider than the block keeps nothing, so
    short blocks need a narrower one.
    """

    window: int = 6
    entropy: float = 0.3
    target_outputs: ClassVar[tuple[str, ...]] = _TOP_OF_TARGET
    draft_outputs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _within("window", self.window, 1, 1 << 20)
        _within("entropy", self.entropy, 0, 1 << 20)

    def score(self, block: Block) -> Scores:
        """Return [k], 1 where the target is uncertain and the following draft tokens match."""
        k = len(block.drafted)
        probabilities = np.maximum(_top_probabilities(block.target)[:, :3], 1e-30)
        unsure = -(probabilities * np.log(probabilities)).sum(axis=1) >= self.entropy
        harmless = [
            i + self.window <= k and bool(block.matches[i + 1 : i + self.window].all())
            for i in range(k)
        ]
        return _as_scores(unsure & np.array(harmless, dtype=np.bool_))


@dataclass(frozen=True)
class StaticEnsemble:
    """A fixed mixture of both models: the static ensemble that DIVERSED (2026) compares with.

    The candidate that is more likely under `weight` * target + (1 - weight) * draft is kept. A true
    ensemble would take the mixture's most likely token of the whole vocabulary; here a third token
    cannot win. The draft's probability of the target's token is read from the draft's best candidates
    and is 0 if it is not among them.
    """

    weight: float = 0.5
    target_outputs: ClassVar[tuple[str, ...]] = ("next_input_logprob", *_TOP_OF_TARGET)
    draft_outputs: ClassVar[tuple[str, ...]] = ("top_values", "top_ids", "logsumexp")

    def __post_init__(self) -> None:
        _within("weight", self.weight, 0, 1)

    def score(self, block: Block) -> Scores:
        """Return [k], 1 where the mixture prefers the draft's token."""
        draft = _top_probabilities(block.draft)
        found = _read(block.draft, "top_ids") == block.target.token[:, None]
        target_of_d = np.exp(_read(block.target, "next_input_logprob"))
        target_of_t = _top_probabilities(block.target)[:, 0]
        draft_of_t = (draft * found).sum(axis=1)
        gain = self.weight * (target_of_d - target_of_t)
        gain += (1 - self.weight) * (draft[:, 0] - draft_of_t)
        return _as_scores(gain > 0)


_RULES: dict[str, Any] = {
    "draft": AlwaysDraft,
    "always-draft": AlwaysDraft,
    "random": RandomArbiter,
    "typical": TypicalAcceptance,
    "relaxed": RelaxedTopK,
    "fly": FlyDeferred,
    "ensemble": StaticEnsemble,
}


def baseline(spec: str) -> Arbiter:
    """Make the baseline that `spec` names, such as `random:0.1`, `typical:0.3,0.09` or `always-draft`.

    Raises:
        UsageError: an unknown rule, or parameters that are missing, superfluous or out of range.
    """
    name, colon, text = spec.partition(":")
    if name not in _RULES:
        hint = f"the rules are: {', '.join(map(_usage, _RULES))}"
        raise UsageError(f"unknown rule '{name}'", hint=hint)
    hint = f"it is written {_usage(name)}"
    parameters = _parameters(name)
    words = text.split(",") if colon else []
    required = sum(each.default is MISSING for each in parameters)
    if not required <= len(words) <= len(parameters):
        raise UsageError(f"'{spec}' has {len(words)} parameters", hint=hint)
    values = []
    for word, parameter in zip(words, parameters, strict=False):
        is_float = parameter.type == "float"
        try:
            values.append(float(word) if is_float else int(word))
        except ValueError:
            what = "a number" if is_float else "an integer"
            raise UsageError(
                f"{parameter.name} in '{spec}' is '{word}', not {what}", hint=hint
            ) from None
    try:
        made: Arbiter = _RULES[name](*values)
    except UsageError as error:
        raise UsageError(f"'{spec}': {error.message}", hint=hint) from None
    return made


def _parameters(name: str) -> list[Field[Any]]:
    return [each for each in fields(_RULES[name]) if each.init]


def _usage(name: str) -> str:
    names = [
        each.name if each.default is MISSING else f"[{each.name}]" for each in _parameters(name)
    ]
    return f"{name}:{','.join(names)}" if names else name


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        bounds = f"at least {low}" if high >= 1 << 20 else f"from {low} to {high}"
        raise UsageError(f"{name} is {value}, but must be {bounds}")


def _top_probabilities(rows: StepOutput) -> NDArray[np.float32]:
    """Return [k, T], the probabilities of a model's best candidates."""
    norm = _read(rows, "logsumexp")
    probabilities: NDArray[np.float32] = np.exp(_read(rows, "top_values") - norm[:, None])
    return probabilities


def _read(rows: StepOutput, name: str) -> NDArray[np.float32]:
    """Return an output that is in the arbiter's `target_outputs` or `draft_outputs`."""
    array: NDArray[np.float32] = getattr(rows, name)
    return array


def _as_scores(keep: NDArray[np.bool_]) -> Scores:
    return keep.astype(np.float32)
