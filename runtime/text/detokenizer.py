"""Text from a growing output, token by token, without half characters."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from ...errors import UsageError
from .tokenizer import guarded

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How tokenizers with byte fallback spell the bytes of what they have no token for."""


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens, special ones too.

    Raises:
        UsageError: a number that is no token id, or a tokenizer that fails on these tokens.
    """
    return guarded(
        lambda: str(tokenizer.decode(list(tokens), skip_special_tokens=False)),
        lambda reason: UsageError(f"these tokens have no text: {reason[:500]}"),
    )


class TextStream:
    """Decodes a growing output; the pieces joined are what it adds to the text of its context.

    A tokenizer that writes spaces as part of words drops the one in front of a text, so a word that
    begins an output keeps its space only when it is decoded after its prompt. `DecodeStream` of
    tokenizers is not used: it raises when bytes that are no UTF-8 follow a character made of bytes.

    Args:
        tokenizer: from `load_tokenizer`.
        hidden: tokens that have no text: ends, turns, padding.
        context: tokens before the output.
    """

    def __init__(self, tokenizer: Any, hidden: Collection[int], context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._context = [token for token in context if token not in hidden]
        self._context_size = len(self._decode(self._context))
        self._pending: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """Add `tokens` and return the text that is now certain."""
        return "".join(self._push(token) for token in tokens)

    def finish(self) -> str:
        """Return what is left: an output may end in the middle of a character."""
        return self._settle(self._decode(self._context + self._pending))

    def _push(self, token: int) -> str:
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None or token in self._hidden:  # a padded vocabulary has ids without text
            return ""
        self._pending.append(token)
        if BYTE_TOKEN.fullmatch(spelling):  # a run is decoded as one, and one wrong byte spoils it
            return ""
        text = self._decode(self._context + self._pending)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._settle(text)

    def _settle(self, text: str) -> str:
        """Take what is pending as the context of the rest, and return its text."""
        new = text[self._context_size :]
        if new:
            self._context = self._pending
            self._context_size = len(self._decode(self._context))
            self._pending = []
        return new

    def _decode(self, tokens: list[int]) -> str:
        return decode(self._tokenizer, tokens)
