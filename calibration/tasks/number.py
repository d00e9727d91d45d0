r"""The checker `number`: is the final number of a text the right one.

The final number is the last announced one (after `####`, `Answer:`, `the answer is`, in
`\boxed{}`); where none is announced, the last number of the text. Of an announced equation the
right-hand side counts. Read as numbers are `1,234.50`, `-3`, `$5`, `25%` (as 25), `3/4`, `2 1/2`,
`\frac{3}{4}`, `.5` and `1e3`; not read are numbers in words, roots and powers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .announced import MAX_TEXT, announcements

_PLAIN = r"(?:\d{1,3}(?:,\d{3}){1,130}(?!\d)|\d{1,400})(?:\.\d{1,400})?|\.\d{1,400}"
# A minus sign after a digit, a letter or a bracket is a subtraction.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])-)?(?:[$€£](?P<late_sign>-)?)?(?<![A-Za-z_\d.])"
    rf"(?:(?P<whole>\d{{1,9}})\s(?P<over>\d{{1,9}})/(?P<under>\d{{1,9}})(?![\d/])"
    rf"|(?P<plain>{_PLAIN})(?:[eE](?P<exponent>[+-]?\d{{1,3}})(?!\w))?"
    rf"(?:\s?/\s?(?P<divisor>\d{{1,400}})(?![\d/.]))?)"
)
_BRACED = r"\s*\{\s*(-?[\d.,]+)\s*\}"
_FRACTION = re.compile(rf"\\[dtc]?frac{_BRACED}{_BRACED}")
_REWRITES = (
    ("\u2212", "-"),
    ("\u00a0", " "),
    ("\u202f", " "),
    ("{,}", ","),
    (r"\!", ""),
    (r"\,", ""),
    (r"\$", "$"),
)
_SENTENCE_END = re.compile(r"[.;](?:\s|$)")


def find_numbers(text: str) -> list[Fraction]:
    """All numbers of a text, in order, exactly."""
    return [
        value for match in _NUMBER.finditer(_tidy(text)) if (value := _value(match)) is not None
    ]


def parse_number(text: str) -> Fraction | None:
    """The number that a text is as a whole (a unit of money or a percent sign aside), or None."""
    match = _NUMBER.fullmatch(_tidy(text).strip().rstrip("%").strip().rstrip("\\$").strip())
    return _value(match) if match else None


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, or None where it holds none."""
    for segment in reversed(announcements(text)):
        sentence = _SENTENCE_END.split(segment)[0]
        for part in (sentence.rpartition("=")[2], sentence):
            numbers = find_numbers(part)
            if numbers:
                return numbers[0]
    numbers = find_numbers(text[-MAX_TEXT:])
    return numbers[-1] if numbers else None


def _tidy(text: str) -> str:
    for old, new in _REWRITES:
        text = text.replace(old, new)
    # The space keeps the whole part of a mixed number apart from what follows it.
    return _FRACTION.sub(lambda m: f"{_gap(text, m.start())}{m[1]}/{m[2]}", text)


def _gap(text: str, position: int) -> str:
    return " " if position and text[position - 1].isdigit() else ""


def _value(match: re.Match[str]) -> Fraction | None:
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["over"]), int(match["under"]))
        else:
            value = Fraction(match["plain"].replace(",", ""))
            if match["exponent"]:
                value *= Fraction(10) ** int(match["exponent"])
            if match["divisor"]:
                value /= int(match["divisor"])
    except (ValueError, ZeroDivisionError):  # ValueError: digits of a script that int() refuses
        return None
    return -value if match["sign"] or match["late_sign"] else value


@dataclass(frozen=True)
class NumberChecker:
    """Compares the final number.

    The answer is a number, or a text that is one. `tolerance` is relative to the answer: 1e-6
    forgives rounding in the last of six digits and nothing that a benchmark would call wrong.
    """

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < 1:
            raise ValueError("'tolerance' is not a number from 0 to below 1")

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        if _gold(answer) is None:
            return f"the answer {str(answer)[:60]!a} is not a number"
        return None

    def check(self, answer: Any, text: str) -> bool:
        """Whether the final number of `text` is `answer`."""
        gold, given = _gold(answer), final_number(text)
        if gold is None or given is None:
            return False
        return abs(given - gold) <= abs(gold) * Fraction(self.tolerance)


def _gold(answer: Any) -> Fraction | None:
    if isinstance(answer, str):
        return parse_number(answer)
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return None
    return Fraction(answer) if math.isfinite(answer) else None
