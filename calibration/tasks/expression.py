r"""The checker `math`: is the final expression of a text the right one, as strings.

The final expression is the content of the last `\boxed{}`; without a box what is announced last
("the answer is ..."), then the last `$...$`, then the last line. Both sides are normalised in the
manner of the MATH benchmark's own comparison (Hendrycks et al., 2021) and compared as text; plain
numbers are compared as numbers, so that `0.5`, `.50`, `1/2` and `\frac12` are one.

Limits, all on the strict side: no algebra is done, so `2x+1` and `1+2x`, `(x+1)^2` and its
expansion, `\sqrt{8}` and `2\sqrt{2}`, and sets in another order count as different. Units are
dropped where they are `\text{...}` at the end; units in plain letters are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .announced import MAX_TEXT, announcements, last_boxed, last_line
from .number import parse_number

_MAX_EXPRESSION = 2000

# In this order. The pieces that set type without changing meaning go first.
_REWRITES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\[!,;:>]|\\ |~|\\q?quad\b", ""),
        (r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text|mbox)\{\s[^{}]*\}(?:\^\{?\d\}?)?$", ""),  # a unit after a value
        (r"(?<=[\d}])\\(?:text|mbox|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?$", ""),
        (r"\\(?:text|textbf|textit|mbox|mathrm|mathbf|operatorname)\{([^{}]*)\}", r"\1"),
        (r"\^(?:\\circ|\{\\circ\})|\\degree\b|°", ""),
        (r"\\?[%$]", ""),
        (r"\\(?:leq|geq|neq)(?![A-Za-z])", lambda match: match[0][:-1]),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\u2212", "-"),
        (r"\s+", ""),
        (r"(?<![\d.])\.(?=\d)", "0."),
        (r"\\sqrt([\dA-Za-z])", r"\\sqrt{\1}"),
        (r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac(\d)\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*\})(\d)", r"\1{\2}"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
    )
)
_SLASH = re.compile(r"(-?)(\d+)/(\d+)")
_NAMED = re.compile(r"^[A-Za-z]{1,2}(?:\(x\))?=(?=.)|^[A-Za-z]\\in(?![A-Za-z])")
_INLINE = re.compile(r"\$([^$\n]+)\$")


def final_expression(text: str) -> str:
    """The expression that a text gives as its answer; empty where the text is."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    announced = announcements(text)
    if announced:
        return announced[-1]
    inline = _INLINE.findall(text[-MAX_TEXT:])
    return str(inline[-1]) if inline else last_line(text)


def normalise(expression: str) -> str:
    """The form in which two expressions are compared."""
    text = expression.strip()[:_MAX_EXPRESSION]
    text = re.sub(r"^\\[(\[]|\\[)\]]\.?$", "", text).strip().rstrip(".:*").lstrip("*")
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = _NAMED.sub("", text)
    if match := _SLASH.fullmatch(text):
        text = f"{match[1]}\\frac{{{match[2]}}}{{{match[3]}}}"
    return text


def same_expression(left: str, right: str) -> bool:
    """Whether two expressions are equal as normalised text, or as plain numbers."""
    left, right = normalise(left), normalise(right)
    if left == right:
        return bool(left)
    value = parse_number(left)
    return value is not None and value == parse_number(right)


@dataclass(frozen=True)
class MathChecker:
    """Compares the final expression. The answer is a text in LaTeX."""

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        if not isinstance(answer, str) or not normalise(answer):
            return "the answer is not an expression (a text in LaTeX)"
        return None

    def check(self, answer: Any, text: str) -> bool:
        """Whether the final expression of `text` is `answer`."""
        return same_expression(final_expression(text), answer)
