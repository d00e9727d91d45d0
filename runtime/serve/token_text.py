"""The text and the bytes of single tokens, for log-probabilities."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from ..text.codec import TextCodec
from ..text.detokenizer import BYTE_TOKEN

_KEPT = 4096
"""Number of tokens whose texts are cached: the most likely tokens are mostly the same few."""


class TokenTexts:
    """Returns the text of single tokens, which a tokenizer's decoder of whole texts does not.

    Args:
        codec: of the bundle.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._tokenizer = codec.tokenizer
        self._special = frozenset(codec.special_token_ids)
        self._bytes_of = _bytes_by_character() if _is_byte_level(codec.tokenizer) else None
        self.spell = lru_cache(_KEPT)(self._spell)

    def _spell(self, token: int) -> tuple[str, tuple[int, ...]]:
        r"""Return a token's text and its bytes in UTF-8.

        A token that is a part of a character has its bytes as its text, such as `\xe2\x82`; this is
        OpenAI's form. A special token has its spelling in the vocabulary; a token id without an entry
        in the vocabulary has an empty text.
        """
        data = self._data(token)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = "".join(f"\\x{byte:02x}" for byte in data)
        return text, tuple(data)

    def _data(self, token: int) -> bytes:
        spelling: str | None = self._tokenizer.id_to_token(token)
        if spelling is None:
            return b""
        if token in self._special:
            return spelling.encode()
        if BYTE_TOKEN.fullmatch(spelling):
            return bytes([int(spelling[3:5], 16)])
        if self._bytes_of is not None and all(one in self._bytes_of for one in spelling):
            return bytes(self._bytes_of[one] for one in spelling)
        # Decoders drop a space at the beginning of a text, so the token is decoded after itself.
        once = str(self._tokenizer.decode([token]))
        return str(self._tokenizer.decode([token, token]))[len(once) :].encode()


def _is_byte_level(tokenizer: Any) -> bool:
    """Return whether the vocabulary spells bytes as printable characters, as GPT-2's does."""
    if tokenizer.decoder is None:
        return False
    decoder = json.loads(tokenizer.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return any(step["type"] == "ByteLevel" for step in steps)


def _bytes_by_character() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + i): byte for i, byte in enumerate(others)}
