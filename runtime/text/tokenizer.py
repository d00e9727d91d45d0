"""Load and use a `tokenizer.json` that may be hostile.

The library `tokenizers` is written in Rust. What it meets unexpectedly there arrives as a
`PanicException`, which is no `Exception`; and two kinds of files would end or hang the process before
it arrives, so they are refused here.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ...errors import BundleError

T = TypeVar("T")

MAX_GROWTH = 1024
"""Largest factor by which the steps of a normaliser or decoder together may lengthen a text."""

_HINT = "it may need a newer 'tokenizers'; otherwise export the bundle again"
_CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
_KEEPS_ALL = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"})
_SHRINKS = {"NFC": 4, "NFKC": 4, "NFD": 1, "NFKD": 1, "Lowercase": 1, "Prepend": 1, "ByteLevel": 1}


def guarded(call: Callable[[], T], failed: Callable[[str], Exception]) -> T:
    """Return what `call` returns; raise `failed(reason)` if the library fails, in whatever way."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise failed(str(error) or type(error).__name__) from error


def load_tokenizer(path: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a file, without truncation and padding.

    Raises:
        BundleError: the file cannot be used.
    """
    from tokenizers import Tokenizer

    def failed(reason: str) -> BundleError:
        return BundleError(f"{path} cannot be used: {reason}", hint=_HINT)

    def load() -> Any:
        data = path.read_bytes()
        _check_charsmaps(data)
        tokenizer = Tokenizer.from_buffer(data)
        for part in (tokenizer.normalizer, tokenizer.decoder):
            _check_growth(part)
        # A file may ask for truncation or padding, which would change prompts in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    return guarded(load, failed)


class Reach:
    """How long a text can be that has at most so many tokens.

    Args:
        tokenizer: from `load_tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` has at least; 0 where none is known."""
        if self._characters is None:
            return 0
        size = len(text)
        if self._swallows_spaces:
            size = sum(map(len, text.split()))
        return -(-size // self._characters)

    @cached_property
    def _characters(self) -> int | None:
        """Characters that one token stands for at most; None if there is no limit.

        Words that a vocabulary does not have may all become one token, and normalisers may drop
        characters: then nothing can be said.
        """
        tokenizer = self._tokenizer
        shrinking = 1
        for step in _steps(tokenizer.normalizer):
            factor = _shrinking(step)
            if factor is None:
                return None
            shrinking *= factor
        steps = list(_steps(tokenizer.pre_tokenizer))
        if not all(step["type"] in _KEEPS_ALL or _keeps_all(step) for step in steps):
            return None
        if type(tokenizer.model).__name__ != "BPE" or not self._knows_all(steps):
            return None
        longest = self._longest_spelling()
        return None if longest is None else longest * shrinking

    def _longest_spelling(self) -> int | None:
        """Return the length of the longest token; None if ids have too many gaps to see them all.

        Token by token, because the whole vocabulary at once would stop other threads for a third of a
        second.
        """
        left = self._tokenizer.get_vocab_size(with_added_tokens=True)
        longest = 1
        for token in range(4 * left):
            spelling = self._tokenizer.id_to_token(token)
            if spelling is not None:
                longest = max(longest, len(spelling))
                left -= 1
                if left == 0:
                    return longest
        return None

    def _knows_all(self, steps: list[dict[str, Any]]) -> bool:
        """Say whether each character has tokens of its own, so that no two unknown ones share one."""
        tokenizer = self._tokenizer
        if any(step["type"] == "ByteLevel" for step in steps):
            from tokenizers.pre_tokenizers import ByteLevel

            return all(tokenizer.token_to_id(one) is not None for one in ByteLevel.alphabet())
        model = tokenizer.model
        if model.byte_fallback:
            spellings = (f"<0x{byte:02X}>" for byte in range(256))
            return all(tokenizer.token_to_id(one) is not None for one in spellings)
        return model.unk_token is not None and not model.fuse_unk

    @cached_property
    def _swallows_spaces(self) -> bool:
        """Whether some added token takes the spaces beside it with it."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return any(token.lstrip or token.rstrip for token in added)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder, as tokenizer.json has them."""
    if part is not None:
        pending = [json.loads(part.__getstate__())]
        while pending:
            step = pending.pop(0)
            inner = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
            if inner is None:
                yield step
            else:
                pending[:0] = inner


def _keeps_all(step: Mapping[str, Any]) -> bool:
    return step["type"] in ("Split", "Punctuation") and step.get("behavior") != "Removed"


def _shrinking(step: Mapping[str, Any]) -> int | None:
    """Return by what factor a step of a normaliser can shorten a text; None if there is no limit."""
    if step["type"] == "Replace":
        pattern, content = step["pattern"].get("String"), step["content"]
        return -(-len(pattern) // len(content)) if pattern and content else None
    return _SHRINKS.get(step["type"])


def _check_growth(part: Any) -> None:
    growth = 1
    for step in _steps(part):
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String") or "x"
            growth *= max(1, -(-len(step["content"]) // len(pattern)))
        if growth > MAX_GROWTH:
            raise ValueError(f"its steps may lengthen a text by a factor of more than {MAX_GROWTH}")


def _check_charsmaps(data: bytes) -> None:
    """Refuse a SentencePiece character map whose length is wrong: the library would abort."""
    for match in _CHARSMAP.finditer(data):
        charsmap = base64.b64decode(match.group(1))
        size = int.from_bytes(charsmap[:4], "little")
        if len(charsmap) < 4 or size % 4 or size + 4 > len(charsmap):
            raise ValueError("its precompiled_charsmap is damaged")
