"""How tokens are chosen: the sampling parameters."""

from __future__ import annotations

from dataclasses import dataclass

from .declaration import Biases, Declared, Texts, TokenIds, option

MAX_LOGPROBS = 64
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams(Declared):
    """How tokens are chosen, and which texts end the output; names as in vLLM.

    The meaning of each is that of transformers' logits processors, in their order: bias, penalties,
    `min_tokens`, temperature, top-k, top-p, min-p. Presence and frequency penalties, which transformers
    lacks, follow OpenAI's definition: they look at the output only.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    temperature: float = option(
        0.0,
        "0 chooses the most likely token. Above 0, tokens are drawn from the logits divided by it.",
        low=0,
        high=100,
    )
    top_k: int = option(0, "Draw from the K most likely tokens; 0 or -1 draws from all.", low=-1)
    top_p: float = option(
        1.0,
        "Draw from the fewest most likely tokens that together have this probability.",
        above=0,
        high=1,
    )
    min_p: float = option(
        0.0, "Draw from tokens with at least this share of the highest probability.", low=0, high=1
    )
    repetition_penalty: float = option(
        1.0, "Above 1, tokens of prompt and output become less likely.", above=0, high=100
    )
    presence_penalty: float = option(
        0.0, "Subtracted from the logits of tokens in the output.", low=-100, high=100
    )
    frequency_penalty: float = option(
        0.0,
        "Subtracted from the logits of tokens in the output, once for each occurrence.",
        low=-100,
        high=100,
    )
    logit_bias: Biases = option({}, "Added to the logit of a token, by token id.")
    seed: int | None = option(
        None,
        "The same seed gives the same output for any draft length. Negative: a random seed, as if "
        "none was given.",
        high=MAX_SEED,
    )
    min_tokens: int = option(
        0, "Ignore ends of text and stop texts before this many tokens.", low=0, unit="tokens"
    )
    stop: Texts = option(
        (),
        "End the output before this text, which may spell a special token. May be given several "
        "times.",
    )
    stop_token_ids: TokenIds = option(
        (), "End the output after this token. May be given several times.", flag="--stop-token-id"
    )
    logprobs: int | None = option(
        None,
        "Report the log-probability of each token, and of this many most likely ones, under the "
        "target before any other sampling parameter is applied.",
        low=0,
        high=MAX_LOGPROBS,
        unit="tokens",
    )

    def __post_init__(self) -> None:
        """Check every value, and replace the two that other programs use for "not given"."""
        super().__post_init__()
        if self.seed is not None and self.seed < 0:
            object.__setattr__(self, "seed", None)
        if self.top_k < 0:
            object.__setattr__(self, "top_k", 0)

    @property
    def is_plain(self) -> bool:
        """Whether the graph's own most likely tokens are chosen, so that logits are not needed."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1
            and not (self.presence_penalty or self.frequency_penalty or self.logit_bias)
            and self.min_tokens == 0
            and self.logprobs is None
        )
