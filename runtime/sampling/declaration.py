"""How a generation option is declared, and how its values are read wherever they come from.

A dataclass field made with `option` is an option of the library, the command line, batch lines and
HTTP. Its type, default, range, unit and help are written once, at the field.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from ...errors import UsageError

Value = TypeVar("Value")
Texts = Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(max_length=64)]
TokenIds = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=64)]
Biases = Mapping[int, Annotated[float, Meta(ge=-1e308, le=1e308)]]


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
class Option:
    """A declared option.

    Attributes:
        name: in Python, JSON and HTTP.
        type: of the field, without None.
        default: value if the option is not given.
        help: what the option sets.
        range: the numbers that are accepted.
        unit: of the number, such as `tokens`; empty if it has none.
        flag: the option's name on the command line.
        http: name of the field in HTTP requests; empty if they may not set it.
        file: whether the command line takes the value from a file.
    """

    name: str
    type: Any
    default: Any
    help: str
    range: Range
    unit: str
    flag: str
    http: str
    file: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """All values, if they are a few texts."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def container(self) -> type | None:
        """`tuple` or `Mapping` if the option has several values, else None."""
        plain = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        return next((kind for kind in (tuple, Mapping) if get_origin(plain) is kind), None)

    @property
    def summary(self) -> str:
        """Help, range, unit and default in one text."""
        facts = [fact for fact in (self.unit, str(self.range)) if fact]
        if isinstance(self.default, str | float) or type(self.default) is int:
            facts.append(f"default: {self.default}")
        return f"{self.help}  [{', '.join(facts)}]" if facts else self.help

    def read(self, value: Any) -> Any:
        """Return a value from Python or JSON in the option's own type.

        Raises:
            OptionError: the value has another type or is out of range.
        """
        if value is None and self.default is None:
            return None
        plain = value.item() if type(value).__module__ == "numpy" and value.ndim == 0 else value
        if isinstance(plain, float) and plain.is_integer():
            plain = int(plain)
        if isinstance(plain, str) and self.container is tuple:
            plain = (plain,)
        try:
            read = msgspec.convert(plain, self.type, str_keys=True)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise self._refusal(value, str(error)) from None
        if isinstance(read, int | float) and not self.range.holds(read):
            raise self._refusal(value, f"must be {self.range}")
        return read

    def _refusal(self, value: object, why: str) -> OptionError:
        shown = f"{value!a:.60}"
        if self.choices:
            return OptionError(
                self.name,
                f"unknown {self.name} {shown}",
                hint=f"the values are: {', '.join(self.choices)}",
            )
        if why.startswith("Invalid enum value"):
            kinds = (get_args(kind) or (kind.__name__,) for kind in get_args(self.type))
            why = f"must be {' or '.join(_WORDS.get(name, name) for names in kinds for name in names)}"
        elif "out of range" in why:
            why = "the number is out of range"
        why = _QUOTED.sub(lambda found: _in_words(found[1]), why).replace("Expected", "must be")
        return OptionError(self.name, f"{self.name} is {shown}, but {why}")


def option(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    unit: str = "",
    flag: str = "",
    http: str | None = None,
    file: bool = False,
) -> Value:
    """Declare an option as the default of a dataclass field; see `Option`."""
    limits = Range(low, high, above)
    facts = {"help": help, "range": limits, "unit": unit}
    facts |= {"flag": flag, "http": http, "file": file}
    if isinstance(default, dict):
        return cast("Value", field(default_factory=default.copy, metadata=facts))
    return field(default=default, metadata=facts)


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
        if "help" in each.metadata:
            default = {} if each.default is MISSING else each.default
            facts = dict(each.metadata)
            facts["flag"] = facts["flag"] or "--" + each.name.replace("_", "-")
            facts["http"] = each.name if facts["http"] is None else facts["http"]
            kind = _hint(declaration, each.name)
            found[each.name] = Option(each.name, kind, default, **facts)
    return found


def _hint(declaration: type, name: str) -> Any:
    """Return the type of one field without None, looked up where the field was written."""
    owner = next(
        each for each in declaration.__mro__ if name in vars(each).get("__annotations__", {})
    )
    alone = type("Alone", (), {"__annotations__": {name: owner.__annotations__[name]}})
    hint = get_type_hints(alone, vars(sys.modules[owner.__module__]), include_extras=True)[name]
    kinds = tuple(kind for kind in get_args(hint) if kind is not type(None))
    return Union[kinds] if type(None) in get_args(hint) else hint  # noqa: UP007 - of a tuple


def _in_words(types: str) -> str:
    """Return what msgspec writes as `int | str` in words."""
    return " or ".join(_WORDS.get(name, name) for name in types.split(" | "))


_QUOTED = re.compile("`([^`]*)`")
_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "null": "nothing",
    "object": "an object",
    "str": "a text",
}
