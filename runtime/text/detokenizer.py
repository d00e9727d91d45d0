"""Text from a growing output, token by token, without half characters."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How tokenizers with byte fallback spell the bytes of what they have no token for."""


class TextStream:
    """Decodes a growing output; the pieces joined are what it adds to the text of its context.

    A tokenizer that writes spaces as part of words drops the one in front of a text, so a word that
    begins an output keeps its space only when it is decoded behind its prompt. `DecodeStream` of
    tokenizers is not used: it raises when bytes that are no UTF-8 follow a character made of bytes.
    """

    def __init__(self, tokenizer: Any, special: Collection[int], context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._context = [token for token in context if token not in special]
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
        if spelling is None or token in self._special:  # a padded vocabulary has ids without text
            return ""
        self._pending.append(token)
        if BYTE_TOKEN.fullmatch(
            spelling
        ):  # decoded as one run, and one wrong byte spoils all of it
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
        return str(self._tokenizer.decode(tokens))
