"""Reading a context into a cache, in passes of bounded width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .engines.protocol import Decoder


def prefill(
    decoder: Decoder,
    tokens: Sequence[int],
    end: int,
    chunk: int,
    interrupted: Callable[[], object] = lambda: None,
) -> None:
    """Feed `tokens[decoder.length:end]` in passes of `chunk` tokens, the remainder last.

    Bounded passes keep the activations of a long prompt small. A context that is at most two tokens
    behind is left alone: the caller's own pass reads those along, without a pass of their own.
    `interrupted` is asked before each pass; what it returns ends the reading unless it is None.
    """
    if end - decoder.length < 2:
        return
    while decoder.length < end and interrupted() is None:
        decoder.step(tokens[decoder.length : min(end, decoder.length + chunk)])
