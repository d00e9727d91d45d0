r"""The checker `number`: is the final number of a text the right one.

The final number is the last announced one of the first complete answer (announced.py); if none is
announced, a first line that is a number, or else the last number. Of an announced equation the
right-hand side counts. Read as numbers are `1,234.50`, `-3`, `$5`, `25%` (as 25), `3/4`, `2 1/2`,
`\frac{3}{4}`, `.5`, `1e3`, `1.2 million` (also as 1.2) and, if announced, words up to the thousands
("three", "twenty-one"). Roots and powers are not read.

It computes with exact fractions and needs no library. math-verify was tried in its place: it takes
the units and other numbers of a sentence for the answer, and reads no mixed numbers or words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .announced import announcements, bare_first_line, first_answer

_PLAIN = r"(?:\d{1,3}(?:,\d{3}){1,130}(?!\d)|\d{1,400})(?:\.\d{1,400})?|\.\d{1,400}"
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# A minus sign after a digit, a letter or a bracket is a subtraction.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])-)?(?:[$€£](?P<late_sign>-)?)?(?<![A-Za-z_\d.])"
    rf"(?:(?P<whole>\d{{1,9}})\s(?P<over>\d{{1,9}})/(?P<under>\d{{1,9}})(?![\d/])"
    rf"|(?P<plain>{_PLAIN})(?:[eE](?P<exponent>[+-]?\d{{1,3}})(?!\w))?"
    rf"(?:\s?/\s?(?P<divisor>\d{{1,400}})(?![\d/.]))?(?:\s(?P<scale>{'|'.join(_SCALES)})\b)?)"
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
_GROUPED = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # 12 000 with a special space
_SENTENCE_END = re.compile(r"[.;](?:\s|$)")
_SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: number for number, word in enumerate(_SMALL_WORDS.split())}
_SMALL |= {word: 10 * tens for tens, word in enumerate(_TENS_WORDS.split(), 2)}
_WORDS = re.compile(
    rf"\b(?:(?:{'|'.join([*_SMALL, 'hundred', 'thousand', 'and'])})\b[\s-]{{0,2}}){{1,12}}",
    re.IGNORECASE,
)

Readings = tuple[Fraction, ...]
"""The values that a number may have: "1.2 million" is 1200000, and 1.2 where millions are asked."""


def find_numbers(text: str) -> list[Readings]:
    """All numbers of a text, in order, exactly."""
    matches = _NUMBER.finditer(_tidy(text))
    return [values for match in matches if (values := tuple(_values(match)))]


def parse_number(text: str) -> Fraction | None:
    """The number that a text is as a whole (a unit of money or a percent sign aside), or None."""
    match = _NUMBER.fullmatch(_tidy(text).strip().rstrip("%").strip().rstrip("\\$").strip())
    return next(_values(match), None) if match else None


def final_number(text: str) -> Readings | None:
    """The number that a text gives as its answer, or None where it holds none."""
    return first_answer(text, _announced, _unannounced)


def _announced(text: str) -> Readings | None:
    for segment in reversed(announcements(text)):
        sentence = _SENTENCE_END.split(segment)[0]
        for part in (sentence.rpartition("=")[2], sentence):
            numbers = find_numbers(part)
            if numbers:
                return numbers[0]
        words = _in_words(sentence)
        if words is not None:
            return (words,)
    return None


def _unannounced(text: str) -> Readings | None:
    bare = parse_number(bare_first_line(text) or "")
    return next(reversed(find_numbers(text)), None) if bare is None else (bare,)


def _in_words(text: str) -> Fraction | None:
    """The first number in words, below a million, or None."""
    for match in _WORDS.finditer(text):
        words = [word for word in re.split(r"[\s-]+", match[0].lower()) if word and word != "and"]
        total = group = 0
        for word in words:
            if word in _SCALES:
                group = max(group, 1) * 10 ** _SCALES[word]
                if word == "thousand":
                    total, group = total + group, 0
            else:
                group += _SMALL[word]
        if words:
            return Fraction(total + group)
    return None


def _tidy(text: str) -> str:
    text = _GROUPED.sub("", text)
    for old, new in _REWRITES:
        text = text.replace(old, new)
    # The space keeps the whole part of a mixed number apart from what follows it.
    return _FRACTION.sub(lambda m: f"{_gap(text, m.start())}{m[1]}/{m[2]}", text)


def _gap(text: str, position: int) -> str:
    return " " if position and text[position - 1].isdigit() else ""


def _values(match: re.Match[str]) -> Iterator[Fraction]:
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
        return
    if match["sign"] or match["late_sign"]:
        value = -value
    if match["scale"]:
        yield value * 10 ** _SCALES[match["scale"]]
    yield value


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
        gold = _gold(answer)
        if gold is None:
            return False
        slack = abs(gold) * Fraction(self.tolerance)
        return any(abs(given - gold) <= slack for given in final_number(text) or ())


def _gold(answer: Any) -> Fraction | None:
    if isinstance(answer, str):
        return parse_number(answer)
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return None
    return Fraction(answer) if math.isfinite(answer) else None
