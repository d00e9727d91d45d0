"""Dataclasses that check themselves against their annotations, from JSON and from Python alike.

An annotation is a type, `X | None`, a Literal, a tuple, a dict, another such dataclass, or one of these
as `Annotated[..., rule]`, where a rule is called with the value and its place and refuses it or not.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from ...errors import BundleError


@dataclass(frozen=True)
class Within:
    """Bounds, both included: of a number its value, of anything else its length."""

    low: int
    high: int

    def __call__(self, value: Any, where: str) -> None:
        """Refuse a value outside the bounds."""
        is_number = isinstance(value, (int, float))
        size = value if is_number else len(value)
        if not self.low <= size <= self.high:
            what = "" if is_number else "a length "
            refuse(where, f"expected {what}from {self.low} to {self.high}, found {size}")


class Checked:
    """Checks and normalises every field of a dataclass against its annotation."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, hint in _hints(cls).items():
            object.__setattr__(self, name, convert(hint, getattr(self, name), name))


@lru_cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def convert(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint` says, with lists made tuples and objects made dataclasses."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = convert(args[0], value, where)
        for rule in args[1:]:
            rule(value, where)
        return value
    if origin in (Union, types.UnionType):  # the only unions here are "or None"
        return None if value is None else convert(args[0], value, where)
    if origin is Literal:
        if value not in args:
            refuse(where, f"expected one of {', '.join(args)}, found {_show(value)}")
        return value
    if origin is dict:
        return _convert_object(args, value, where)
    if origin is tuple:
        return _convert_list(args, value, where)
    if is_dataclass(hint):
        return value if type(value) is hint else _build(hint, value, where)
    if type(value) is not hint:  # exact: True is no number here
        refuse(where, f"expected {hint.__name__}, found {_show(value)}")
    if hint is str and not value.isprintable():
        refuse(where, f"{_show(value)} contains characters that cannot be printed")
    return value


def _convert_object(hints: tuple[Any, ...], value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        refuse(where, f"expected an object, found {_show(value)}")
    return {
        convert(hints[0], key, where): convert(hints[1], item, f"{where}[{_show(key)}]")
        for key, item in value.items()
    }


def _convert_list(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        refuse(where, f"expected a list, found {_show(value)}")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        refuse(where, f"expected {len(hints)} values, found {len(value)}")
    return tuple(
        convert(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _build(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        refuse(where, f"expected an object, found {_show(value)}")
    hints = _hints(cls)
    prefix = f"{where}." if where else ""
    for kind, keys in (("unknown", value.keys() - hints), ("missing", hints.keys() - value)):
        if keys:
            refuse(prefix + _show(min(keys)).strip("'"), f"{kind} key")
    return cls(**{key: convert(hint, value[key], prefix + key) for key, hint in hints.items()})


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(where: str, problem: str) -> NoReturn:
    """Raise the error of a value that is not what it should be, naming its place."""
    raise BundleError(f"{where}: {problem}")
