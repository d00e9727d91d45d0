"""Prefill: feed a context in passes of bounded width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .protocol import Decoder


def prefill(
    decoder: Decoder,
    tokens: Sequence[int],
    chunk: int,
    ahead: int,
    interrupted: Callable[[], object] = lambda: None,
) -> None:
    """Feed `tokens` in passes of `chunk` tokens, up to what the caller's own pass can take.

    That pass reads the last tokens together with the drafted ones, so a short prompt costs no pass of
    its own. Bounded passes keep the activations of a long one small.

    Args:
        decoder: what reads; it may hold a part already.
        tokens: prompt and committed output.
        chunk: tokens of a pass at most.
        ahead: drafted tokens that the caller's pass will feed behind them at most.
        interrupted: called before each pass; anything but None ends the prefill.
    """
    rest = max(1, chunk - ahead)
    while len(tokens) - decoder.length > rest and interrupted() is None:
        decoder.step(tokens[decoder.length : min(len(tokens) - 1, decoder.length + chunk)], rows=1)
