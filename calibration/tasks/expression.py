r"""The checker `math`: is the final expression of a text equal to the right one.

The final expression is that of the first complete answer (announced.py): the content of its last
`\boxed{}`; without a box what it announces last ("the answer is ..."), then the last `$...$`, then
the last line. Both sides are normalised in the manner of the MATH benchmark's own comparison
(Hendrycks et al., 2021). They are equal as texts, as plain numbers, or where math-verify says so
(algebra.py), which knows algebra: `2x+1` and `1+2x`, `\sqrt{8}` and `2\sqrt{2}`, sets in any order.

Texts and numbers are compared first, by us: that is exact and fast, and right where math-verify is
not (`x` is not `X`; `12^{\text{th}}` is 12). Finding the answer is ours too: math-verify takes the
last formula of a text, whatever it runs on to, and reads thoughts.

Limits: units are dropped where they are `\text{...}` at the end; units in plain letters are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .algebra import is_equal
from .announced import announcements, bare_first_line, first_answer, last_boxed, last_line
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
        (r"(?<=\d)\^?\{?(?:st|nd|rd|th)\}?(?![A-Za-z])", ""),  # 12th, 12^{\text{th}}
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
        (r"^\(([A-Za-z])\)$|^([A-Z])\)$", r"\1\2"),  # a choice: (C)
    )
)
_SLASH = re.compile(r"(-?)(\d+)/(\d+)")
_NAMED = re.compile(r"^[A-Za-z]{1,2}(?:\(x\))?=(?=.)|^[A-Za-z]\\in(?![A-Za-z])")
_INLINE = re.compile(r"\$([^$\n]+)\$")


def final_expression(text: str) -> str:
    """The expression that a text gives as its answer; empty where the text is."""
    return first_answer(text, _announced, _unannounced) or ""


def _announced(part: str) -> str | None:
    return last_boxed(part) or next(reversed(announcements(part)), None)


def _unannounced(part: str) -> str | None:
    bare = bare_first_line(part)
    if bare is not None and parse_number(bare) is not None:
        return bare
    return next(reversed(_INLINE.findall(part)), None) or last_line(part)


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
    """Whether two expressions are equal: as normalised texts, as plain numbers, or by algebra.

    Raises:
        MissingExtraError: math-verify is needed and not installed.
    """
    texts = normalise(left), normalise(right)
    if not all(texts):
        return False
    if texts[0].lower() == texts[1].lower():
        return texts[0] == texts[1] or (texts[0].isalpha() and len(texts[0]) > 2)
    values = tuple(map(parse_number, texts))
    if None not in values:
        return values[0] == values[1]
    return is_equal(left, right)


@dataclass(frozen=True)
class MathChecker:
    """Compares the final expression. The answer is a text in LaTeX."""

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        if not isinstance(answer, str) or not normalise(answer):
            return "the answer is not an expression (a text in LaTeX)"
        return None

    def check(self, answer: Any, text: str) -> bool:
        """Whether the final expression of `text` equals `answer`.

        Raises:
            MissingExtraError: math-verify is not installed.
        """
        return same_expression(answer, final_expression(text))
