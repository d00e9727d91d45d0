"""What one rendering of a chat template may cost, and the price of each operation.

A template comes with a checkpoint, so it may be hostile. Jinja's sandbox keeps it away from files
and from Python's internals, but not from `'a' * 10**9`. Here every operation is paid for before it
runs, out of a fixed budget: a rendering that costs too much ends with `TemplateCostError` in about a
second and in bounded memory.

Prices are in units of roughly 50 nanoseconds. They do not depend on the machine or on its load, so a
template that renders on one machine renders on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2.utils import Namespace
from markupsafe import Markup, escape

UNITS = 9_000_000
"""Budget of one rendering. A message of a chat costs 500 to 8,000 units in real templates."""

MAX_WIDTH = 10_000
"""Largest padding width, precision or number of columns that a template may ask for."""

MAX_INTEGER_BITS = 1024
"""Size of the largest integer."""

MAX_SLOW_CHARACTERS = 10_000
"""Longest text for operations that may take quadratic time."""

MAX_STRIPPED_CHARACTERS = 100
"""Most characters that one call takes from the ends of a text."""

_CHARACTERS_WRITTEN_PER_UNIT = 2  # bounds memory: 18 million characters are written in all
_CHARACTERS_READ_PER_UNIT = 64
_UNITS_PER_REFERENCE = 1  # in a list, to a value that is there already
_UNITS_PER_ELEMENT = 4  # of a list, with a value of its own
_UNITS_PER_ENTRY = 10  # of a dictionary, or a piece of a text
_UNITS_PER_CALL = 40
_UNITS_PER_TEXT = 4
_ITERATOR_MODULES = ("builtins", "itertools")  # not Jinja's cyclers, which are iterators as well


class TemplateCostError(Exception):
    """A template that needs more time or memory than a rendering may take."""

    def __init__(self, reason: str = "it takes too many steps or too much memory") -> None:
        super().__init__(f"the rendering was ended: {reason}")


class Budget:
    """What is left of the budget of one rendering.

    Sizes of containers are remembered, because nothing in the sandbox can change a container.
    """

    def __init__(self) -> None:
        self._left = UNITS
        self._sizes: dict[int, tuple[Any, int]] = {}

    def spend(self, units: int) -> None:
        """Pay `units`.

        Raises:
            TemplateCostError: the budget is used up.
        """
        self._left -= units
        if self._left < 0:
            raise TemplateCostError

    def call(self) -> None:
        """Pay for one call."""
        self.spend(_UNITS_PER_CALL)

    def write(self, characters: int) -> None:
        """Pay for new text of so many characters."""
        self.spend(_UNITS_PER_TEXT + characters // _CHARACTERS_WRITTEN_PER_UNIT)

    def read(self, value: Any) -> None:
        """Pay for reading a value from end to end, with all that it contains."""
        if not isinstance(value, str) or len(value) >= _CHARACTERS_READ_PER_UNIT:
            self.spend(self.size(value) // _CHARACTERS_READ_PER_UNIT)

    def read_all(self, values: Iterable[Any], named: Mapping[str, Any]) -> None:
        """Pay for reading the arguments of a call."""
        for value in (*values, *named.values()):
            self.read(value)

    def references(self, count: int) -> None:
        """Pay for a list of so many values that are there already."""
        self.spend(1 + count * _UNITS_PER_REFERENCE)

    def elements(self, count: int) -> None:
        """Pay for a list of so many new values."""
        self.spend(1 + count * _UNITS_PER_ELEMENT)

    def entries(self, count: int) -> None:
        """Pay for a dictionary of so many entries, or a text cut into so many pieces."""
        self.spend(1 + count * _UNITS_PER_ENTRY)

    def most_entries(self) -> int:
        """Return for how many entries the rest of the budget pays."""
        return self._left // _UNITS_PER_ENTRY + 1

    def made(self, value: Any) -> Any:
        """Pay for a value that an operation has made, and return it.

        The elements of an iterator are paid for one by one, when they are taken.
        """
        kind = type(value)
        if kind is bool or value is None:
            return value
        if isinstance(value, (str, bytes)):
            self.write(len(value))
        elif kind is int:
            check_bits(value.bit_length())
        elif isinstance(value, (list, tuple)):
            self.elements(len(value))
        elif isinstance(value, (dict, set, frozenset)):
            self.entries(len(value))
        elif hasattr(kind, "__next__") and kind.__module__ in _ITERATOR_MODULES:
            return self.each(value)
        return value

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the values, and pay for each."""
        for value in values:
            self.spend(_UNITS_PER_CALL)
            yield value

    def size(self, value: Any) -> int:
        """Return how many characters a value has when it is written out, give or take a few.

        A part that occurs several times counts as often as it would be written.
        """
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, int):
            return value.bit_length() // 3 + 2
        if isinstance(value, Namespace):  # the only container that can change
            return self._total(vars_of(value).items())
        items: Iterable[Any]
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = value
        elif hasattr(value, "__iter__") and hasattr(value, "__len__") and not callable(value):
            items = value  # a range or a view of a dictionary
        else:
            return 64
        known = self._sizes.get(id(value))
        if known is None:
            # The value is kept, so that its id belongs to no other one.
            known = self._sizes[id(value)] = (value, self._total(items))
        return known[1]

    def _total(self, items: Iterable[Any]) -> int:
        total = 4
        for item in items:
            self.spend(_UNITS_PER_CALL)
            total += self.size(item) + 4
        return total


def vars_of(namespace: Namespace) -> dict[str, Any]:
    """Return the attributes of a namespace."""
    found: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return found


def check_bits(bits: int) -> None:
    """Refuse an integer that would be too large."""
    if bits > MAX_INTEGER_BITS:
        raise TemplateCostError("a number is too large")


def check_width(value: Any) -> None:
    """Refuse a width, or a number of columns, that is too large."""
    if isinstance(value, int) and abs(value) > MAX_WIDTH:
        raise TemplateCostError(f"a width is above {MAX_WIDTH}")


# ---- operators ----------------------------------------------------------------------------------


def pay_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Pay for `left operator right` before it is computed."""
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        _pay_arithmetic(operator, left, right)
    elif operator == "*":
        repeated, count = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(count, int) and isinstance(repeated, (str, bytes)):
            budget.write(len(repeated) * max(count, 0))
        elif isinstance(count, int) and isinstance(repeated, (list, tuple)):
            budget.references(len(repeated) * max(count, 0))
    elif operator == "%" and isinstance(left, (str, bytes)):
        pay_percent_format(budget, left, right)
    elif isinstance(left, (str, bytes)) and isinstance(right, (str, bytes)):
        budget.write(len(left) + len(right))
    else:
        for value in (left, right):
            if hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
                budget.references(len(value))
                if not isinstance(value, (list, tuple)):
                    budget.entries(len(value))


def _pay_arithmetic(operator: str, left: float, right: float) -> None:
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    if operator == "**":
        if abs(left) > 1:
            check_bits(left.bit_length() * abs(right))
    elif operator == "*":
        check_bits(left.bit_length() + right.bit_length())
    else:
        check_bits(max(left.bit_length(), right.bit_length()))


def pay_percent_format(budget: Budget, template: str | bytes, values: Any) -> None:
    """Pay for `template % values`."""
    text = template.decode("latin-1") if isinstance(template, bytes) else template
    conversions = text.count("%")
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", text)] if conversions else []
    if "*" in text:  # a width that is one of the values
        given = values if isinstance(values, tuple) else (values,)
        widths += [abs(value) for value in given if isinstance(value, int)]
    used = [width for width in widths if width > 0]
    for width in used:
        check_width(width)
    budget.write(len(text) + sum(used) + conversions * budget.size(values))


# ---- methods of texts and other plain values ----------------------------------------------------


Arguments = tuple[list[Any], dict[str, Any]]
"""Positional and keyword arguments of a call; what pays for the call may change them."""


def _pay_padding(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    for value in arguments[0]:
        check_width(value)
    budget.write(len(receiver) + MAX_WIDTH)


def _pay_tabs(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    values = [*arguments[0], *arguments[1].values()]
    for value in values:
        check_width(value)
    tab = b"\t" if isinstance(receiver, bytes) else "\t"
    width = max([8, *(value for value in values if isinstance(value, int))])
    budget.write(len(receiver) + receiver.count(tab) * width)


def pay_replace(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    """Pay for `receiver.replace(old, new, count)`; escaped text escapes both, whatever they are."""
    old, new, *_ = (*arguments[0], None, None)
    if isinstance(receiver, Markup):
        count = receiver.count(escape(old)) if isinstance(old, str) else len(receiver) + 1
        budget.write(len(receiver) + count * 5 * budget.size(new))
    elif isinstance(old, type(receiver)) and isinstance(new, type(receiver)):
        budget.write(len(receiver) + receiver.count(old) * len(new))


def pay_join(budget: Budget, separator: Any, arguments: Arguments) -> None:
    """Pay for `separator.join(values)`, and take the values out of an iterator."""
    values = arguments[0]
    if values:
        if hasattr(values[0], "__next__"):
            values[0] = list(budget.each(values[0]))
        count = len(values[0]) if hasattr(values[0], "__len__") else 0
        budget.write(budget.size(values[0]) + count * len(separator))


def _pay_split(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    """Have at most as many parts made as the budget pays for."""
    values, named = arguments
    budget.write(len(receiver))
    limit = budget.most_entries()
    wanted = values[1] if len(values) > 1 else named.get("maxsplit", -1)
    if isinstance(wanted, int) and not 0 <= wanted <= limit:
        if len(values) > 1:
            values[1] = limit
        else:
            named["maxsplit"] = limit


def _pay_lines(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    ends = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    counts = [receiver.count(end) for end in ends] if isinstance(receiver, str) else [len(receiver)]
    budget.write(len(receiver))
    budget.entries(sum(counts))


def pay_strip(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    """Pay for `receiver.strip(characters)`, which looks each character up in the others."""
    budget.read(receiver)
    for value in (*arguments[0], *arguments[1].values()):
        if isinstance(value, (str, bytes)) and len(value) > MAX_STRIPPED_CHARACTERS:
            raise TemplateCostError(f"more than {MAX_STRIPPED_CHARACTERS} characters are stripped")


def _pay_translate(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    table = arguments[0][0] if arguments[0] else ()
    values = table.values() if isinstance(table, Mapping) else [table]
    budget.write(len(receiver) * max([1, *(budget.size(value) for value in values)]))


def _refuse(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    raise TemplateCostError("it calls a method that chat templates have no use for")


def _pay_short(budget: Budget, receiver: Any, arguments: Arguments) -> None:
    check_short(budget, [receiver])


def check_short(budget: Budget, values: Iterable[Any]) -> None:
    """Refuse long values, for operations that may take quadratic time."""
    if sum(budget.size(value) for value in values) > MAX_SLOW_CHARACTERS:
        raise TemplateCostError(f"an operation is for at most {MAX_SLOW_CHARACTERS} characters")


_METHODS: Mapping[str, Callable[[Budget, Any, Arguments], None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _pay_padding),
    **dict.fromkeys(("split", "rsplit"), _pay_split),
    **dict.fromkeys(("partition", "rpartition"), lambda b, receiver, _: b.write(len(receiver))),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), pay_strip),
    **dict.fromkeys(("to_bytes", "from_bytes"), _refuse),
    **dict.fromkeys(("striptags", "unescape"), _pay_short),
    "expandtabs": _pay_tabs,
    "replace": pay_replace,
    "join": pay_join,
    "splitlines": _pay_lines,
    "translate": _pay_translate,
}


def pay_method(budget: Budget, receiver: Any, name: str, arguments: Arguments) -> None:
    """Pay for a method of a plain value before it is called."""
    pay = _METHODS.get(name) if isinstance(receiver, (str, bytes, int)) else None
    if pay is not None:
        pay(budget, receiver, arguments)
    else:
        for value in (receiver, *arguments[0]):
            budget.read(value)
