"""What a decoder makes of texts, measured through the runtime.

Texts are fed as a verify pass feeds them, the last token together with as many as are drafted: in some
formats a row's numbers depend on what else is in its pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...runtime.engines.prefill import prefill
from ...runtime.engines.protocol import Decoder, Engine
from .texts import Text

OUTPUTS = ("token", "next_input_logprob")


@dataclass(frozen=True)
class Reading:
    """What a decoder makes of texts, over all positions that count.

    Attributes:
        logprobs: float32 [n], log-probability of each token, in nats.
        chosen: int64 [n], the most likely token at each position.
    """

    logprobs: NDArray[np.float32]
    chosen: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability."""
        return math.exp(-float(self.logprobs.mean(dtype=np.float64)))

    def agreement(self, chosen: ArrayLike) -> float:
        """Return the share of positions at which these tokens are the most likely."""
        return float((self.chosen == np.asarray(chosen)).mean())


def read(
    engine: Engine,
    texts: Sequence[Text],
    width: int,
    chunk: int,
    progress: Callable[[], None] = lambda: None,
) -> Reading:
    """Feed texts to an engine.

    Args:
        engine: of a decoder.
        texts: what it reads.
        width: tokens of a pass, at least 2.
        chunk: tokens of a pass in parts that do not count.
        progress: called as each text begins.

    Raises:
        BackendError: the engine fails, or its numbers are not finite.
    """
    decoder = engine.decoder(OUTPUTS)
    parts = []
    for text in texts:
        progress()
        decoder.truncate(0)
        parts.append(read_text(decoder, text, width, chunk))
    logprobs, chosen = zip(*(pair for part in parts for pair in part), strict=True)
    return Reading(np.concatenate(logprobs), np.concatenate(chosen))


def read_text(
    decoder: Decoder, text: Text, width: int, chunk: int
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Return (log-probabilities, choices) of the scored tokens, pass by pass.

    The decoder returns OUTPUTS. It is empty, or holds the text up to `scored_from - 1`.
    """
    tokens, start = text.tokens, text.scored_from - 1
    # All but one of these tokens: the scored passes begin with it.
    prefill(decoder, tokens[: start + 1], chunk, ahead=chunk - 1)
    passes = []
    while start < len(tokens) - 1:
        rows = decoder.step(tokens[start : start + width])
        assert rows.next_input_logprob is not None
        # The last row has no successor in this pass: it is fed again as the first of the next.
        count = len(rows.token) - 1
        passes.append((rows.next_input_logprob[:count].copy(), rows.token[:count].copy()))
        start += count
        decoder.truncate(start)
    return passes
