"""Reading a context into a cache, in passes of bounded width."""

from __future__ import annotations

from collections.abc import Sequence

from .engines.protocol import Decoder


def prefill(decoder: Decoder, tokens: Sequence[int], end: int, chunk: int) -> None:
    """Feed `tokens[decoder.length:end]` in passes of `chunk` tokens, the remainder last.

    Bounded passes keep the activations of a long prompt small. A context that is at most two tokens
    behind is left alone: the caller's own pass reads those along, without a pass of their own.
    """
    if end - decoder.length < 2:
        return
    while decoder.length < end:
        decoder.step(tokens[decoder.length : min(end, decoder.length + chunk)])
