"""Reading a JSON body field by field: nothing is decoded that is not asked for, nothing is forgotten.

A body is first split into its fields, whose values stay bytes, so that a hostile value costs no objects
and little time. Each value is then decoded straight into its type.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, get_args

import msgspec
from msgspec import Raw

from .refusals import RefusedError

NULL = b"null"

LONGEST_NEUTRAL = 100
"""Bytes of the longest value that can be one of those at which a field has no effect."""

LONGEST_UNTYPED = 1 << 18
"""Bytes of the longest value of a field without a type, such as a JSON schema."""

MOST_VALUES = 50_000
"""Values, lists and objects in a field that may contain any JSON: each becomes a Python object."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')

LONGEST_INTEGER = 30
"""Digits; Python refuses to print integers of some thousand digits."""

_WANTED: Mapping[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
}


class _Name:
    """A field's name that equals no other, so that a name that appears twice is seen."""

    def __init__(self, text: str) -> None:
        self.text = text


_SPLIT = msgspec.json.Decoder(dict[_Name, Raw], dec_hook=lambda _, text: _Name(text))


class Fields:
    """The fields of a JSON object that are still to be read; null counts as not given.

    Args:
        data: the object.
        within: path of the object, put in front of the names of its fields in errors.

    Raises:
        RefusedError: not a JSON object, a field twice, or nested too deeply.
    """

    def __init__(self, data: bytes | Raw, within: str = "") -> None:
        self._within = within
        self._left: dict[str, Raw] = {}
        self._paths: dict[str, str] = {}
        try:
            pairs = _SPLIT.decode(data)
        except msgspec.ValidationError:
            where = within.rstrip(".")
            raise RefusedError(
                f"{where or 'the body'} is not a JSON object", param=where or None
            ) from None
        except msgspec.DecodeError as error:
            raise RefusedError(f"the body is not valid JSON ({error})") from None
        except RecursionError:
            raise RefusedError("the body is nested too deeply") from None
        seen = set()
        for name, value in pairs.items():
            if name.text in seen:
                raise RefusedError(f"the field {self.path(name.text)!a} appears twice")
            seen.add(name.text)
            if len(value) != len(NULL) or bytes(value) != NULL:
                self._left[name.text] = value

    def has(self, name: str, value: bytes | None = None) -> bool:
        """Return whether a field is given and not read yet; with this JSON as its value, if any."""
        return name in self._left and value in (None, bytes(self._left[name]))

    def inside(self, name: str) -> Fields:
        """Return the fields of a field that is an object.

        Raises:
            RefusedError: it is not given, or no object.
        """
        value = self._left.pop(name, None)
        if value is None:
            raise self.missing(name)
        return Fields(value, within=f"{self.path(name)}.")

    def peek(self, name: str) -> Any:
        """Return the plain value of a field, as `take`, and leave it to be read."""
        value = self._left.get(name)
        decoded = self.take(name)
        if value is not None:
            self._left[name] = value
        return decoded

    def adopt(self, name: str, source: Fields, inner: str) -> None:
        """Read a field of another object, or of this one, under another name from now on."""
        value = source._left.pop(inner, None)
        if value is not None:
            self._left[name] = value
            self._paths[name] = source.path(inner)

    def missing(self, name: str) -> RefusedError:
        """Return the refusal of an object that lacks a field."""
        return RefusedError(f"{self.path(name)} is missing", param=self.path(name))

    def take(self, name: str, kind: Any = Any) -> Any:
        """Return the value of a field, or None where it is not given.

        Args:
            name: of the field.
            kind: any type that msgspec can decode; Any returns plain values of JSON. A float without a
                fraction passes for an int.

        Raises:
            RefusedError: it is of another type.
        """
        value = self._left.pop(name, None)
        if value is None:
            return None
        path = self.path(name)
        if kind is Any and len(value) > LONGEST_UNTYPED:
            raise RefusedError(f"{path} is longer than {LONGEST_UNTYPED} bytes", param=path)
        if kind is Any or Any in get_args(kind):
            _check_count(value, path)
        try:
            if kind is int and len(value) > LONGEST_INTEGER:
                raise msgspec.ValidationError("out of range")
            decoded = _decoder(kind).decode(value)
        except msgspec.ValidationError as error:
            wanted = _wanted(kind)
            shown = bytes(memoryview(value)[:40]).decode("utf-8", "replace")
            what = f"must be {wanted}, not {shown}" if wanted else f"is wrong: {error}"
            raise RefusedError(f"{path} {what}", param=path) from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise RefusedError(f"{path} is not valid JSON ({error})", param=path) from None
        if kind is int:
            if decoded != int(decoded):
                raise RefusedError(f"{path} must be an integer, not {decoded}", param=path)
            return int(decoded)
        return decoded

    def refuse(self, unsupported: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse known fields that are not supported; see `finish`."""
        for name in unsupported:
            if name in self._left:
                self._refuse_unless(name, unsupported[name])
                del self._left[name]

    def finish(
        self,
        unsupported: Mapping[str, tuple[Any, ...]],
        harmless: Collection[str] = (),
    ) -> None:
        """Refuse fields that were not read.

        Args:
            unsupported: known fields, each with the values at which it has no effect.
            harmless: fields that have no effect whatever their value is.

        Raises:
            RefusedError: a field is unknown, or has a value that is not supported.
        """
        for name in self._left:
            if name in unsupported:
                self._refuse_unless(name, unsupported[name])
            elif name not in harmless:
                path = self.path(name)
                raise RefusedError(f"unknown field {path!a}", param=path, code="unknown_parameter")

    def _refuse_unless(self, name: str, neutral: tuple[Any, ...]) -> None:
        """Refuse a field unless it has one of these values."""
        if any(_is(self._left[name], each) for each in neutral):
            return
        path = self.path(name)
        raise RefusedError(
            f"this server supports only {' or '.join(dict.fromkeys(map(_json, neutral)))} for {path}"
            if neutral
            else f"this server does not support {path}",
            param=path,
            code="unsupported_value" if neutral else "unsupported_parameter",
        )

    def path(self, name: str) -> str:
        """Return the name of a field as the client knows it."""
        return self._paths.get(name, f"{self._within}{name}")[:100]


def _check_count(value: Raw, path: str) -> None:
    data = bytes(value)
    if _marks(data, 0, len(data)) <= MOST_VALUES:
        return
    count = begin = 0
    for string in _STRING.finditer(data):  # marks within strings are text
        count += _marks(data, begin, string.start())
        begin = string.end()
        if count > MOST_VALUES:
            break
    if count + _marks(data, begin, len(data)) > MOST_VALUES:
        raise RefusedError(f"{path} contains more than {MOST_VALUES} values", param=path)


def _marks(data: bytes, begin: int, end: int) -> int:
    return sum(data.count(mark, begin, end) for mark in (b",", b"[", b"{"))


@lru_cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(int | float if kind is int else kind)


def _wanted(kind: Any) -> str | None:
    """Return the words for a simple type."""
    choices = get_args(kind)
    if choices and all(isinstance(each, str) for each in choices):
        return f"one of {', '.join(choices)}"
    return _WANTED.get(kind)


def _is(value: Raw, neutral: object) -> bool:
    if len(value) > LONGEST_NEUTRAL:
        return False
    try:
        decoded = msgspec.json.decode(value)
    except msgspec.MsgspecError:
        return False
    return decoded == neutral and isinstance(decoded, bool) == isinstance(neutral, bool)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
