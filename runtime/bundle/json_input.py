"""JSON from outside: bounded in size and depth, strict, and refused with the path of the field.

Use it for all JSON that others may have written: manifests, certificates, arbiter folders,
task files, batch lines, saved conversations, HTTP bodies.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...errors import BundleError, CospecError

Kind = TypeVar("Kind")

DEFAULT_DEPTH = 16
"""How many levels of lists and objects a value may have."""

_meanings: dict[str, str] = {}


def matching(pattern: str, meaning: str, max_length: int | None = None) -> Meta:
    """Return the rule that a text must match `pattern`; errors show `meaning` instead of it.

    Args:
        pattern: regular expression, searched for as `re.search` does.
        meaning: continues the sentence "expected ...".
        max_length: in characters.
    """
    _meanings[repr(pattern)] = meaning
    return Meta(pattern=pattern, max_length=max_length)


def convert(value: Any, kind: type[Kind], where: str = "", *, error: type[CospecError]) -> Kind:
    """Return plain values as `kind`, a type that msgspec knows; no value is coerced.

    Args:
        value: what a JSON parser returns.
        kind: a `Struct`, a dict of types, a Literal, ...
        where: path of the value, put in front of the path of the field.
        error: what is raised.

    Raises:
        CospecError: of the type `error`: names the field, and what was expected there.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        raise error(_explain(str(problem), where)) from None


def parse_json_object(
    data: bytes,
    *,
    max_bytes: int,
    max_depth: int = DEFAULT_DEPTH,
    error: type[CospecError] = BundleError,
) -> dict[str, Any]:
    """Parse a JSON object so that a hostile file costs neither time nor memory.

    Raises:
        CospecError: of the type `error`: not an object, larger or deeper than allowed, a key
            twice, NaN or Infinity, a text that is not valid Unicode.
    """
    if len(data) > max_bytes:
        raise error(f"larger than {max_bytes} bytes")
    # The part outside of strings: without escaped quotes, every second part between quotes.
    outside = b"".join(data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    if _is_deeper(outside, max_depth):
        raise error(f"nested deeper than {max_depth} levels, or not valid JSON")
    try:
        value = msgspec.json.decode(data)
    except msgspec.MsgspecError as problem:
        surrogate = "half a surrogate pair, or " if rb"\ud" in data.lower() else ""
        raise error(f"not valid JSON ({surrogate}{str(problem).partition(' - at ')[0]})") from None
    if not isinstance(value, dict):
        raise error("not a JSON object")
    if outside.count(b":") != _count_keys(value):
        json.loads(data, object_pairs_hook=lambda pairs: _refuse_duplicate(pairs, error))
    return value


def read_json(
    path: Path,
    kind: type[Kind],
    *,
    max_bytes: int,
    error: type[CospecError],
    hint: str | None = None,
) -> Kind:
    """Read a file that holds one JSON object.

    Args:
        path: of the file.
        kind: see `convert`.
        max_bytes: nothing beyond them is read.
        error: what is raised.
        hint: what the user can do about a file that is not as it should be.

    Raises:
        CospecError: of the type `error`: names the file and the field.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
        value = parse_json_object(data, max_bytes=max_bytes, error=error)
        return convert(value, kind, error=error)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})", hint=hint) from None
    except CospecError as problem:
        raise error(f"{path}: {problem.message}", hint=problem.hint or hint) from None


class Checked(Struct, frozen=True, forbid_unknown_fields=True):
    """A struct whose fields are checked and normalised when it is made from Python, too."""

    def __post_init__(self) -> None:
        for name, kind in _fields(type(self)).items():
            value = convert(getattr(self, name), kind, name, error=BundleError)
            msgspec.structs.force_setattr(self, name, value)


@lru_cache
def _fields(cls: type[Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(cls)}


def _explain(message: str, where: str) -> str:
    """Return a message of msgspec as `path: what was expected`."""
    problem, _, path = message.partition(" - at `$")
    path = f"{where}{path.rstrip('`')}".lstrip(".")
    key = re.fullmatch("Object .* (unknown|required) field `(.*)`", problem, re.DOTALL)
    if key is not None:
        path = f"{path}.{_show(key[2])}".lstrip(".")
        problem = "unknown key" if key[1] == "unknown" else "missing key"
    elif problem.startswith("Expected `str` matching regex"):
        pattern = problem.partition("regex ")[2]
        problem = f"expected {_meanings.get(pattern, f'a text that matches {pattern}')}"
    else:
        problem = f"{problem[:1].lower()}{problem[1:]}".replace("`", "")
    return f"{path}: {problem}" if path else problem


def _is_deeper(outside: bytes, levels: int) -> bool:
    """Whether brackets are nested deeper than `levels`, or do not pair."""
    brackets = outside.translate(bytes.maketrans(b"{}", b"[]"), delete=_NO_BRACKETS)
    for _ in range(levels):  # each turn takes the innermost level away, at the speed of memory
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _count_keys(value: Any) -> int:
    """Return the number of keys of all objects in a parsed value."""
    count, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            count += len(item)
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return count


def _refuse_duplicate(pairs: list[tuple[str, Any]], error: type[CospecError]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise error(f"the key {key[:60]!a} appears twice")
        found[key] = value
    return found


def _show(text: str) -> str:
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 60 else shown[:57] + "..."
