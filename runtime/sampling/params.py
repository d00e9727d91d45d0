"""What a caller may ask of the choice of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import UsageError

MAX_LOGPROBS = 64
MAX_STOPS = 64
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and which texts end the output; names as in vLLM.

    The meaning of each is that of transformers' logits processors, in their order: bias, penalties,
    `min_tokens`, temperature, top-k, top-p, min-p. Presence and frequency penalties, which transformers
    lacks, follow OpenAI's definition: they look at the output only.

    Attributes:
        temperature: 0 takes the most likely token; above it, logits are divided by it and drawn from.
        top_k: draw from the k most likely tokens; 0 from all.
        top_p: draw from the fewest most likely tokens that hold this share of the probability.
        min_p: draw from the tokens with at least this share of the most likely one's probability.
        repetition_penalty: above 1, tokens of prompt and output become less likely.
        presence_penalty: subtracted from the logits of tokens that the output holds.
        frequency_penalty: subtracted from them as often as they occur in it.
        logit_bias: token id -> added to its logit.
        seed: the same seed gives the same output, however many tokens are drafted; None draws one.
        min_tokens: tokens before which neither an end-of-sequence token nor a stop text ends the
            output.
        stop: texts that end the output where they first occur; they are not part of it.
        logprobs: how many of the most likely tokens to report beside each chosen one, with their
            log-probabilities under the target before anything above was applied; None reports nothing.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name, low, high in (
            ("temperature", 0, 100),
            ("min_p", 0, 1),
            ("presence_penalty", -100, 100),
            ("frequency_penalty", -100, 100),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # false for NaN too
                raise UsageError(f"{name} is {value}, but must be from {low} to {high}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}, but must be above 0 and at most 1")
        if not 0 < self.repetition_penalty <= 100:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty}, but must be above 0 and at most 100"
            )
        for name in ("top_k", "min_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 0")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed is {self.seed}, but must be from 0 to {MAX_SEED}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(f"logprobs is {self.logprobs}, but must be from 0 to {MAX_LOGPROBS}")
        if not all(math.isfinite(value) for value in self.logit_bias.values()):
            raise UsageError(
                "logit_bias holds a value that is not finite",
                hint="to forbid a token, use a large negative number such as -1e9",
            )
        if not isinstance(self.stop, tuple) or not all(self.stop) or len(self.stop) > MAX_STOPS:
            raise UsageError(
                f"stop must be a tuple of at most {MAX_STOPS} texts, none of them empty"
            )

    @property
    def is_plain(self) -> bool:
        """Whether the models' own most likely tokens are wanted, so that nobody needs their logits."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1
            and not (self.presence_penalty or self.frequency_penalty or self.logit_bias)
            and self.min_tokens == 0
            and self.logprobs is None
        )
