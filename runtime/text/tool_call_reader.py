"""Reading tool calls from a growing output."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .tool_calls import Tool, ToolFormat


@dataclass(frozen=True)
class CallPart:
    """A part of a call, as a model writes it.

    Attributes:
        name: of the function, in the first part of a call; None in the others.
        arguments: what the part adds to the JSON text of the arguments.
        ended: whether the call is whole now; a call whose last part has not ended was cut off.
    """

    name: str | None
    arguments: str
    ended: bool


_HEAD = re.compile(
    r'[\s\[;,]*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""A call up to its arguments."""

_AROUND_CALLS = re.compile(r"[\s\]};,]*")


class ToolCallReader:
    """Splits a growing output into text and parts of calls.

    Text is passed on as it comes. From where a call may begin, the output is held back until it is
    certain whether it is one; then its arguments are passed on as they come.

    Args:
        tools: only their names are calls; other JSON is text.
        form: how the model writes calls.
    """

    def __init__(self, tools: Sequence[Tool], form: ToolFormat) -> None:
        self._names = {tool.name for tool in tools}
        self._mark, self._close = form.begin.strip(), form.end.strip()
        self._held = ""
        self._has_called = False
        self._is_text = False
        self._name: str | None = None
        self._arguments: _JsonObject | None = None
        self._is_closing = False

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """Add text; return the text and the parts of calls that are certain now."""
        self._held += text
        return self._read(final=False)

    def finish(self) -> tuple[str, list[CallPart]]:
        """Return what is left at the end of the output."""
        return self._read(final=True)

    def _read(self, *, final: bool) -> tuple[str, list[CallPart]]:
        said, parts = "", []
        while self._held:
            if self._arguments is not None:
                parts += self._argument_parts(self._arguments)
            elif self._is_closing:
                if not self._skip_end(final=final):
                    break
            else:
                text, calls, goes_on = self._tagged(final) if self._mark else self._bare(final)
                said, parts = said + text, parts + calls
                if not goes_on:
                    break
        if self._has_called and not said.strip():
            said = ""  # white space between calls is no answer
        return said, parts

    def _argument_parts(self, arguments: _JsonObject) -> list[CallPart]:
        """Return what the held text adds to the arguments of the open call."""
        length = arguments.length_in(self._held)
        part = CallPart(self._name, self._held[:length], arguments.is_whole)
        self._name, self._held = None, self._held[length:]
        if arguments.is_whole:
            self._arguments, self._is_closing = None, True
        return [part]

    def _skip_end(self, *, final: bool) -> bool:
        """Drop what ends a call; return False if more text is needed for that."""
        if not self._mark:
            around = _AROUND_CALLS.match(self._held)
            assert around is not None
            self._held = self._held[around.end() :]
            self._is_closing = not self._held
            return bool(self._held)
        marks = (self._close, self._mark)
        places = [place for mark in marks if (place := self._held.find(mark)) >= 0]
        if not places and not final:
            return False
        place = min(places, default=len(self._held))
        self._held = self._held[place:].removeprefix(self._close)
        self._is_closing = False
        return True

    def _tagged(self, final: bool) -> tuple[str, list[CallPart], bool]:
        """Read up to the next mark, and what follows it; return whether to go on."""
        start = self._held.find(self._mark)
        if start < 0:
            kept = 0 if final else _overlap(self._held, self._mark)
            said, self._held = _cut(self._held, len(self._held) - kept)
            return said, [], False
        said, self._held = _cut(self._held, start)
        if self._open_call(len(self._mark)):
            return said, [], True
        stop = self._held.find(self._close)
        if stop < 0 and not final:
            return said, [], False
        inner = self._held[len(self._mark) : stop if stop >= 0 else None]
        whole, self._held = _cut(
            self._held, stop + len(self._close) if stop >= 0 else len(self._held)
        )
        calls = self._calls_in(inner)
        return said + ("" if calls else whole), calls, True

    def _bare(self, final: bool) -> tuple[str, list[CallPart], bool]:
        """Read an output that is JSON as a whole; return whether to go on."""
        if self._is_text or self._held.lstrip()[:1] not in ("{", "[", ""):
            self._is_text = True
        elif self._open_call(0):
            return "", [], True
        elif not final:
            return "", [], False
        text, self._held = self._held, ""
        calls = [] if self._is_text else self._calls_in(text)
        return "" if calls else text, calls, False

    def _open_call(self, at: int) -> bool:
        """Begin a call whose name is known, if one is held whole up to its arguments."""
        head = _HEAD.match(self._held, at)
        if head is None or head[1] not in self._names:
            return False
        self._name, self._held = head[1], self._held[head.end() :]
        self._arguments, self._has_called = _JsonObject(), True
        return True

    def _calls_in(self, text: str) -> list[CallPart]:
        """Return the calls that a text consists of; none if anything else is in it."""
        decoder, at, found = json.JSONDecoder(), 0, []
        while (at := _skip(text, at)) < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return []
            found += value if isinstance(value, list) else [value]
        calls = [self._call(each) for each in found]
        if not calls or None in calls:
            return []
        self._has_called = True
        return [call for call in calls if call is not None]

    def _call(self, value: Any) -> CallPart | None:
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            return CallPart(value["name"], arguments, ended=True)
        if not isinstance(arguments, dict):
            return None
        return CallPart(value["name"], json.dumps(arguments, ensure_ascii=False), ended=True)


class _JsonObject:
    """Finds the end of a JSON object in a text that comes in pieces."""

    def __init__(self) -> None:
        self.is_whole = False
        self._depth = 0
        self._in_string = self._is_escaped = False

    def length_in(self, text: str) -> int:
        """Return how much of the next piece belongs to the object."""
        for i, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_whole = True
                    return i + 1
        return len(text)


def _cut(text: str, at: int) -> tuple[str, str]:
    return text[:at], text[at:]


def _skip(text: str, at: int) -> int:
    """Return the next position that is neither white space nor a separator of calls."""
    while at < len(text) and (text[at].isspace() or text[at] in ";,"):
        at += 1
    return at


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of `text` may begin `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
