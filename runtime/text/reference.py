"""Texts and conversations with the token ids that transformers gives them: the record of the text gate.

The exporter writes it into the bundle (`text_gate.json`), so that the comparison can be repeated
wherever the bundle is, without torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ...errors import BundleError, CospecError, GateError
from ..bundle.json_input import read_json
from .template import frozen_clock

if TYPE_CHECKING:
    from .codec import TextCodec

RECORD_FILE = "text_gate.json"
"""Name of the file in a bundle."""

MAX_RECORD_BYTES = 16 << 20
_BEFORE, _AFTER = 40, 60  # characters of context in an error
_TOKENS = 4


class Case(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One text or conversation, and what transformers makes of it.

    Attributes:
        name: what it is about.
        text: the text; for a conversation, the prompt that the template renders.
        ids: the tokens of the text.
        messages: the conversation; None for a plain text.
        arguments: further arguments of `TextCodec.encode_chat`.
        refused: why the template refuses the conversation; None if it does not.
    """

    name: str
    text: str = ""
    ids: list[int] = []
    messages: list[dict[str, Any]] | None = None
    arguments: dict[str, Any] = {}
    refused: str | None = None


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """All cases of a checkpoint.

    Attributes:
        transformers: the version that made the references.
        now: the time that templates saw, in ISO format.
        cases: texts and conversations.
    """

    transformers: str
    now: str
    cases: list[Case]

    def to_json(self) -> bytes:
        """Return the contents of `text_gate.json`."""
        return msgspec.json.encode(self) + b"\n"

    def counts(self) -> dict[str, Any]:
        """Return how much was compared, and with what."""
        chats = [case for case in self.cases if case.messages is not None]
        refused = sum(case.refused is not None for case in chats)
        return {
            "texts": len(self.cases) - len(chats),
            "conversations": len(chats),
            "refused_by_both": refused,
            "transformers": self.transformers,
        }


def read_record(path: Path) -> Record:
    """Read a `text_gate.json`.

    Raises:
        BundleError: the file is damaged.
    """
    record = read_json(
        path, Record, max_bytes=MAX_RECORD_BYTES, error=BundleError, hint="export the bundle again"
    )
    try:
        datetime.fromisoformat(record.now)
    except ValueError as error:
        raise BundleError(f"{path}: now is not a time", hint="export the bundle again") from error
    return record


def compare(codec: TextCodec, record: Record) -> None:
    """Check that a codec makes the very prompts and ids of the record.

    Raises:
        GateError: names the first case that differs, with its first difference.
    """
    with frozen_clock(datetime.fromisoformat(record.now)):
        for case in record.cases:
            difference = _difference(codec, case)
            if difference is not None:
                raise GateError(f"{case.name}: {difference}")


def _difference(codec: TextCodec, case: Case) -> str | None:
    """Return in what a codec differs from the reference, or None."""
    try:
        if case.messages is None:
            text, ids = case.text, codec.encode(case.text)
        else:
            text = codec.chat.render(case.messages, **case.arguments)
            ids = codec.encode_rendered(text)
    except CospecError as error:
        if case.refused is not None:
            return None
        return f"it is refused here ({error.message}), but not by transformers"
    except TypeError as error:  # arguments that `encode_chat` does not have
        return f"its arguments cannot be used: {error}"
    if case.refused is not None:
        return f"transformers refuses it ({case.refused}), but here it is {text[:_AFTER]!r}"
    if text != case.text:
        return _text_difference(text, case.text)
    return _id_difference(codec, ids, case.ids)


def _text_difference(ours: str, theirs: str) -> str:
    at = _first_difference(ours, theirs)
    start = max(0, at - _BEFORE)
    return (
        f"the prompts differ from character {at} on, after {theirs[start:at]!r}: here "
        f"{ours[at : at + _AFTER]!r}, in transformers {theirs[at : at + _AFTER]!r}"
    )


def _id_difference(codec: TextCodec, ours: list[int], theirs: list[int]) -> str | None:
    if ours == theirs:
        return None
    at = _first_difference(ours, theirs)

    def spelled(ids: list[int]) -> str:
        piece = ids[at : at + _TOKENS]
        return f"{piece} ({' '.join(repr(codec.spelling(token)) for token in piece)})"

    before = codec.decode(theirs[max(0, at - _BEFORE) : at])[-_BEFORE:]
    return (
        f"the ids differ from token {at} on, after {before!r}: here {spelled(ours)}, in "
        f"transformers {spelled(theirs)}"
    )


def _first_difference(ours: Sequence[object], theirs: Sequence[object]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
