"""What Jinja's filters and tests cost; see `template_budget`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .template_budget import (
    Budget,
    TemplateCostError,
    check_short,
    check_width,
    pay_join,
    pay_operator,
    pay_percent_format,
    pay_replace,
    pay_strip,
)

Payment = Callable[[Budget, list[Any], dict[str, Any]], None]
"""Pays for a call; gets its positional and keyword arguments, and may change them."""

MAX_ATTRIBUTES = 20
"""Longest path of attributes that filters follow."""

MAX_NAME = 1000
"""Longest name of an attribute, filter or test that is given as a value."""

MAX_DIGITS = 1000
"""Longest text that is read as a number: Python takes quadratic time for it."""


def pay_filter(name: str) -> Payment:
    """Return what pays for the filter `name`."""
    return _FILTERS.get(name, _pay_all)


def pay_lipsum(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Pay for Jinja's generator of placeholder text: paragraphs, and words in each."""
    numbers = {"n": 5, "max": 100}
    numbers |= {name: value for name, value in kwargs.items() if isinstance(value, int)}
    numbers |= dict(zip(("n", "html", "min", "max"), args, strict=False))
    for value in numbers.values():
        if not isinstance(value, int):
            raise TypeError("lipsum takes numbers")  # a text would be multiplied below
        check_width(value)
    budget.write(20 * numbers["n"] * numbers["max"])


def _pay_nothing(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    """For filters that look at one element."""


def _pay_each(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    """For filters that work element by element; those pay for themselves."""
    _pay_names(budget, [*args[1:2], kwargs.get("attribute")])
    budget.write(sum(budget.size(value) for value in args[2:3]))  # of a test


def _pay_names(budget: Budget, names: Iterable[Any]) -> None:
    """Pay for names of attributes, filters and tests: an error writes out what is not there.

    A long name is refused, and a long path such as `a.b.c`: both are used for each element.
    """
    for name in names:
        budget.write(budget.size(name))
        if not isinstance(name, str):
            continue
        if len(name) > MAX_NAME or name.count(".") > MAX_ATTRIBUTES:
            raise TemplateCostError(
                f"a name has more than {MAX_NAME} characters or {MAX_ATTRIBUTES} parts"
            )


def _pay_all(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Pay for writing every argument out."""
    budget.write(sum(budget.size(value) for value in (*args, *kwargs.values())))


def _pay_escape(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    _pay_all(budget, args * 5, kwargs)


def _pay_short(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    check_short(budget, (*args, *kwargs.values()))


def _pay_copy(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    if args and hasattr(args[0], "__len__"):
        budget.elements(len(args[0]))


def _pay_groups(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    for value in (*args[1:], *kwargs.values()):
        check_width(value)
    _pay_copy(budget, args, kwargs)


def _pay_order(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    _pay_names(budget, [*args[1:], *kwargs.values()])
    if args and hasattr(args[0], "__next__"):
        args[0] = list(budget.each(args[0]))
    if args and hasattr(args[0], "__len__"):
        budget.elements(8 * len(args[0]))
        budget.write(budget.size(args[0]))
        # A default value is put into lower case for each element.
        others = (*args[1:], *kwargs.values())
        budget.write(len(args[0]) * sum(budget.size(value) for value in others))


def _pay_sum(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    start = args[2] if len(args) > 2 else kwargs.get("start", 0)
    if not isinstance(start, (int, float)):
        raise TemplateCostError("the filter sum adds numbers only")
    _pay_order(budget, args, kwargs)


def _pay_number(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    if args and isinstance(args[0], (str, bytes)) and len(args[0]) > MAX_DIGITS:
        raise TemplateCostError(f"a number has more than {MAX_DIGITS} digits")


def _pay_round(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    if args and isinstance(args[0], (str, bytes, list, tuple)):
        raise TypeError("round takes a number")  # Python would multiply it
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_DIGITS:
            raise TemplateCostError(f"a precision is above {MAX_DIGITS}")


def _pay_center(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    _pay_groups(budget, args, kwargs)
    _pay_all(budget, args, kwargs)


def _pay_indent(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    width = args[1] if len(args) > 1 else kwargs.get("width", 4)
    check_width(width)
    size = width if isinstance(width, int) else budget.size(width)
    lines = args[0].count("\n") + 1 if args and isinstance(args[0], str) else 1
    budget.write(sum(budget.size(value) for value in args) + lines * max(size, 0))


def _pay_replace(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    _pay_all(budget, args, kwargs)
    texts = [str(value) for value in args[:3]]
    texts += [str(kwargs[name]) for name in ("old", "new") if name in kwargs]
    if len(texts) > 2:
        pay_replace(budget, texts[0], (texts[1:], {}))


def _pay_join(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    separator = args[1] if len(args) > 1 else kwargs.get("d", "")
    if not isinstance(separator, str):  # Jinja writes it out
        budget.write(budget.size(separator))
        separator = str(separator)
    values = args[:1]
    pay_join(budget, separator, (values, {}))
    args[:1] = values


def _pay_trim(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    _pay_all(budget, args, kwargs)
    pay_strip(budget, "", (args[1:], kwargs))


def _pay_remainder(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    """For tests that compute `value % number`, which formats a text."""
    if args:
        pay_operator(budget, "%", args[0], args[1] if len(args) > 1 else kwargs.get("num", 2))


def _pay_format(budget: Budget, args: list[Any], kwargs: dict[str, Any]) -> None:
    if args:
        budget.write(budget.size(args[0]))
        pay_percent_format(budget, str(args[0]), kwargs or tuple(args[1:]))


_FILTERS: Mapping[str, Payment] = {
    **dict.fromkeys(("length", "count", "first", "last", "default", "d", "items"), _pay_nothing),
    **dict.fromkeys(("map", "select", "reject", "selectattr", "rejectattr", "attr"), _pay_each),
    **dict.fromkeys(("abs", "random"), _pay_nothing),
    **dict.fromkeys(("list", "reverse"), _pay_copy),
    **dict.fromkeys(("batch", "slice"), _pay_groups),
    **dict.fromkeys(("sort", "dictsort", "unique", "groupby", "min", "max"), _pay_order),
    **dict.fromkeys(("int", "float"), _pay_number),
    **dict.fromkeys(("escape", "e", "forceescape"), _pay_escape),
    **dict.fromkeys(("urlize", "urlencode", "striptags", "wordwrap", "pprint"), _pay_short),
    **dict.fromkeys(("xmlattr", "title", "wordcount"), _pay_short),
    "trim": _pay_trim,
    "sum": _pay_sum,
    "round": _pay_round,
    "center": _pay_center,
    "indent": _pay_indent,
    "replace": _pay_replace,
    "join": _pay_join,
    "format": _pay_format,
}

_READING_TESTS = (
    *("eq", "==", "equalto", "ne", "!=", "in"),
    *("lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">="),
)
TEST_PAYMENTS: Mapping[str, Payment] = {
    **dict.fromkeys(_READING_TESTS, Budget.read_all),
    **dict.fromkeys(("odd", "even", "divisibleby"), _pay_remainder),
    **dict.fromkeys(("lower", "upper"), _pay_all),
}
"""What pays for a test; the other tests look at a value without reading it."""
