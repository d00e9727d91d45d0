"""How a generation option is declared, and how its values are read wherever they come from.

A dataclass field made with `option` is an option of the library, the command line, batch lines and
HTTP. Its type, default, range, unit and help are written once, at the field.
"""

from __future__ import annotations

import json
import math
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ...errors import UsageError

Value = TypeVar("Value")

MAX_ITEMS = 64
"""Longest list that an option accepts, such as a list of stop texts."""

_MAX_ID_DIGITS = 20
"""Longest token id in text: `int` needs quadratic time for long ones, and refuses the longest."""


class OptionError(UsageError):
    """An option whose value has the wrong type or is out of range.

    Attributes:
        option: name of the option.
    """

    def __init__(self, option: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.option = option


@dataclass(frozen=True)
class Range:
    """The numbers that an option accepts: from `low` to `high`, both included, and above `above`."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range; NaN never is."""
        return (
            not (isinstance(value, float) and math.isnan(value))
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"from {self.low} to {self.high}"
        bounds = (("at least", self.low), ("above", self.above), ("at most", self.high))
        return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Kind:
    """How the values of one type are read.

    Attributes:
        name: what a value must be, for error messages.
        metavar: placeholder on the command line.
        read: converts a value from Python or JSON; raises ValueError, TypeError or OverflowError.
        parse: converts a word of the command line to what `read` accepts; raises ValueError.
        repeats: whether the command line accepts the option several times, once for each item.
        choices: all values, if they are a few texts.
    """

    name: str
    metavar: str
    read: Callable[[Any], Any]
    parse: Callable[[str], Any] = str
    repeats: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """A declared option.

    Attributes:
        name: in Python, JSON and HTTP.
        flag: on the command line.
        kind: how values are read.
        default: value if the option is not given.
        range: the numbers that are accepted.
        unit: of the number, such as `tokens`; empty if it has none.
        help: what the option sets.
        http: whether HTTP requests may set it.
    """

    name: str
    flag: str
    kind: Kind
    default: Any
    range: Range
    unit: str
    help: str
    http: bool

    def read(self, value: object) -> Any:
        """Return a value in the option's own type.

        Raises:
            OptionError: the value has another type or is out of range.
        """
        if value is None and self.default is None:
            return None
        try:
            read = self.kind.read(value)
        except _ItemError as error:
            raise OptionError(self.name, f"{self.name}: {error}") from None
        except (ValueError, TypeError, OverflowError):
            if self.kind.choices and isinstance(value, str):
                hint = f"the values are: {', '.join(self.kind.choices)}"
                raise OptionError(
                    self.name, f"unknown {self.name} '{ascii(value)[1:-1]:.60}'", hint=hint
                ) from None
            raise OptionError(
                self.name, f"{self.name} must be {self.kind.name}, not {value!a:.60}"
            ) from None
        if isinstance(read, int | float) and not self.range.holds(read):
            raise OptionError(self.name, f"{self.name} is {read}, but must be {self.range}")
        return read

    @property
    def summary(self) -> str:
        """Help, unit, range and default in one text."""
        facts = [] if not str(self.range) else [f"{self.range} {self.unit}".strip()]
        if isinstance(self.default, str | float) or type(self.default) is int:
            facts.append(f"default: {self.default}")
        return f"{self.help}  [{'; '.join(facts)}]" if facts else self.help


def option(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    unit: str = "",
    flag: str = "",
    http: bool = True,
    kind: Kind | None = None,
) -> Value:
    """Declare an option as the default of a dataclass field.

    Args:
        default: value if the option is not given.
        help: what the option sets, in a sentence or two.
        low: lowest number.
        high: highest number.
        above: the number must be greater than this.
        unit: of the number, such as `tokens`.
        flag: the option's name on the command line; derived from the field's name if empty.
        http: whether HTTP requests may set it.
        kind: how values are read; derived from the field's type if None.
    """
    facts = {"help": help, "range": Range(low, high, above), "unit": unit}
    facts |= {"flag": flag, "http": http, "kind": kind}
    made: Value = (
        field(default_factory=dict, metadata=facts)  # type: ignore[assignment]
        if isinstance(default, dict)
        else field(default=default, metadata=facts)
    )
    return made


class Declared:
    """Base class of dataclasses with options: each value is converted and checked on creation."""

    def __post_init__(self) -> None:
        """Convert and check every option.

        Raises:
            OptionError: a value has the wrong type or is out of range.
        """
        declaration: type = type(self)
        for name, declared in options_of(declaration).items():
            object.__setattr__(self, name, declared.read(getattr(self, name)))


@cache
def options_of(declaration: type) -> Mapping[str, Option]:
    """Return the options that a dataclass declares, by name, in the order of their fields."""
    found = {}
    for each in fields(declaration):
        if "help" not in each.metadata:
            continue
        facts = dict(each.metadata)
        facts["flag"] = facts["flag"] or "--" + each.name.replace("_", "-")
        default = {} if each.default is MISSING else each.default
        facts["kind"] = facts["kind"] or _kind(_hint(declaration, each.name))
        found[each.name] = Option(name=each.name, default=default, **facts)
    return found


def _hint(declaration: type, name: str) -> Any:
    """Return the type of one field, looked up where the field was written."""
    owner = next(
        each for each in declaration.__mro__ if name in vars(each).get("__annotations__", {})
    )
    alone = type("Alone", (), {"__annotations__": {name: owner.__annotations__[name]}})
    return get_type_hints(alone, vars(sys.modules[owner.__module__]))[name]


def _kind(hint: Any) -> Kind:
    """Return how values of a type are read."""
    if get_origin(hint) is Literal:
        texts = get_args(hint)
        return Kind(f"one of {', '.join(texts)}", "|".join(texts), _one_of(texts), choices=texts)
    if hint in _KINDS:
        return _KINDS[hint]
    parts = tuple(part for part in get_args(hint) if part is not NoneType)
    return _kind(parts[0]) if len(parts) == 1 else _KINDS[parts]


class _ItemError(ValueError):
    """An item of a list or of a mapping is wrong; says which."""


def _integer(value: Any) -> int:
    """Return an integer; 16.0 is one, True is none."""
    if isinstance(value, bool):
        raise TypeError
    return int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError
    return value if isinstance(value, int) and abs(value) < 1 << 53 else float(value)


def read_text(value: Any) -> str:
    """Return a text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError
    return value


def _true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _one_of(texts: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in texts:
            raise ValueError
        return str(value)

    return read


def _length(value: Any) -> int | str:
    return "auto" if value == "auto" else _integer(value)


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else _list(value)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    if not all(texts):
        raise _ItemError("a text is empty")
    return texts


def _token_ids(value: Any) -> tuple[int, ...]:
    return tuple(map(_integer, _list(value)))


def _list(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping):
        raise TypeError
    items = tuple(value)
    if len(items) > MAX_ITEMS:
        raise _ItemError(f"there are {len(items)} items, but at most {MAX_ITEMS} are accepted")
    return items


def _biases(value: Any) -> Mapping[int, float]:
    read = {}
    for name, bias in dict(value).items():
        token = name
        if isinstance(name, str):  # keys of JSON objects are texts
            if not (name.isascii() and name.isdecimal() and len(name) <= _MAX_ID_DIGITS):
                raise _ItemError(f"{name!a:.40} is not a token id")
            token = int(name)
        number = float(_number(bias))
        if not math.isfinite(number):
            raise _ItemError(f"the bias of {token} is not finite; to forbid a token, use -1e9")
        read[_integer(token)] = number
    return read


def _variables(value: Any) -> Mapping[str, Any]:
    read = dict(value)
    if not all(isinstance(name, str) for name in read):
        raise TypeError
    return read


def _named(parse: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Return what splits NAME=VALUE and parses the value."""

    def split(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError
        return name, parse(value)

    return split


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


_KINDS: dict[Any, Kind] = {
    int: Kind("an integer", "N", _integer, int),
    float: Kind("a number", "X", _number, float),
    bool: Kind("true or false", "", _true_or_false),
    str: Kind("a text", "TEXT", read_text),
    (int, Literal["auto"]): Kind("an integer or 'auto'", "N|auto", _length, _number_or_auto),
    tuple[str, ...]: Kind("a text or a list of texts", "TEXT", _texts, repeats=True),
    tuple[int, ...]: Kind("a list of token ids", "ID", _token_ids, int, repeats=True),
    Mapping[int, float]: Kind(
        "an object that maps token ids to numbers", "ID=X", _biases, _named(float), repeats=True
    ),
    Mapping[str, Any]: Kind(
        "an object", "NAME=VALUE", _variables, _named(_json_or_text), repeats=True
    ),
}
"""How values are read, by the type of the field without None."""
