"""Reading the fields of a JSON object one by one, so that none is forgotten."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, overload

from .refusals import RefusedError


class Fields:
    """The fields of an object that are still to be read; null counts as not given.

    Args:
        body: the object.
        within: where it is, as the start of its fields' names in errors.
    """

    def __init__(self, body: Mapping[str, Any], within: str = "") -> None:
        self._left = {name: value for name, value in body.items() if value is not None}
        self._within = within

    def take(self, name: str) -> Any:
        """Return a field as it is, or None."""
        return self._left.pop(name, None)

    @overload
    def number(self, name: str, default: float) -> float: ...
    @overload
    def number(self, name: str) -> float | None: ...
    def number(self, name: str, default: float | None = None) -> float | None:
        """Return a number.

        Raises:
            RefusedError: it is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, "a number", value)
        return float(value)

    @overload
    def integer(self, name: str, default: int) -> int: ...
    @overload
    def integer(self, name: str) -> int | None: ...
    def integer(self, name: str, default: int | None = None) -> int | None:
        """Return an integer.

        Raises:
            RefusedError: it is something else.
        """
        value = self.take(name)
        return default if value is None else self.as_integer(name, value)

    def as_integer(self, name: str, value: Any) -> int:
        """Return the value of a field that was taken before as an integer."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "an integer", value)
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """Return a truth value.

        Raises:
            RefusedError: it is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str) -> str | None:
        """Return a text.

        Raises:
            RefusedError: it is something else.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        return value

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """Return one of a few texts.

        Raises:
            RefusedError: it is something else.
        """
        value = self.take(name)
        if value is not None and (not isinstance(value, str) or value not in choices):
            raise self._wrong(name, f"one of {', '.join(choices)}", value)
        return value

    def finish(
        self, unsupported: Mapping[str, tuple[Any, ...]], harmless: Collection[str] = ()
    ) -> None:
        """Refuse what was not read.

        Args:
            unsupported: known fields, with the values at which they mean nothing.
            harmless: fields that may say whatever they like.

        Raises:
            RefusedError: a field is unknown, or has a value that is not supported.
        """
        for name, value in self._left.items():
            where = f"{self._within}{name}"[:100]
            if name in harmless:
                continue
            if name not in unsupported:
                raise RefusedError(
                    f"unknown field {where!a}", param=where, code="unknown_parameter"
                )
            neutral = unsupported[name]
            if any(type(value) is type(each) and value == each for each in neutral):
                continue
            if not neutral:
                raise RefusedError(
                    f"this server does not support {where}",
                    param=where,
                    code="unsupported_parameter",
                )
            raise RefusedError(
                f"this server supports only {' or '.join(map(repr, neutral))} for {where}",
                param=where,
                code="unsupported_value",
            )

    def _wrong(self, name: str, wanted: str, value: Any) -> RefusedError:
        where = f"{self._within}{name}"
        return RefusedError(f"{where} must be {wanted}, not {repr(value)[:60]}", param=where)
