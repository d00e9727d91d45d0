"""Log-probabilities of a given text, as evaluation harnesses ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..engines.protocol import Decoder
from ..sampling.sampler import TokenLogprob

OUTPUTS = ("next_input_logprob", "top_values", "top_ids", "logsumexp")
"""What a pass returns; with `logits` where more candidates are wanted than the graph reports."""


def score_tokens(
    decoder: Decoder,
    tokens: Sequence[int],
    top: int,
    chunk: int,
    interrupted: Callable[[], object] = lambda: None,
) -> list[TokenLogprob]:
    """Return the log-probability of each token but the first, in nats, given the tokens before it.

    Args:
        decoder: empty; afterwards it holds all tokens but the last.
        tokens: the text, at least one token.
        top: number of most likely tokens to report at each position.
        chunk: tokens per pass, at least 2.
        interrupted: called before each pass; a value other than None ends the scoring.

    Raises:
        BackendError: the backend failed.
    """
    scores: list[TokenLogprob] = []
    outputs: tuple[str, ...] = OUTPUTS
    while decoder.length < len(tokens) - 1 and interrupted() is None:
        start = decoder.length
        decoder.select(outputs)
        rows = decoder.step(tokens[start : start + chunk])
        assert rows.next_input_logprob is not None, "selected above"
        assert rows.top_values is not None
        assert rows.top_ids is not None
        assert rows.logsumexp is not None
        if top > rows.top_ids.shape[1] and rows.logits is None:
            outputs = (*OUTPUTS, "logits")
            decoder.truncate(start)
            continue
        ids, values = rows.top_ids[:, :top], rows.top_values[:, :top]
        if rows.logits is not None:
            ids = np.argsort(-rows.logits, axis=-1, kind="stable")[:, :top]
            values = np.take_along_axis(rows.logits, ids, axis=-1)
        likely = values - rows.logsumexp[:, None]
        count = len(rows.token) - 1  # the last row's successor is fed with the next pass
        for row in range(count):
            pairs = zip(ids[row].tolist(), likely[row].tolist(), strict=True)
            scores.append(TokenLogprob(float(rows.next_input_logprob[row]), tuple(pairs)))
        decoder.truncate(start + count)
    return scores
