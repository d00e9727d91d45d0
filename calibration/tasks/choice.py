r"""The checker `choice`: is the chosen letter of a multiple-choice question the right one.

The choice is the last announced letter ("Answer: B", "the answer is (b)", a boxed letter) of the
first complete answer (announced.py); then a sentence that says so ("Option B is correct.", "I choose
B"); then a line that is nothing but a letter; then the last letter in brackets, "(B)"; then a text
that begins with "B." or "B)". A text that only repeats the wording of a choice counts as wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .announced import announcements, first_answer


@dataclass(frozen=True)
class ChoiceChecker:
    """Compares the chosen letter. The answer is one of `letters`."""

    letters: str = "ABCD"

    def __post_init__(self) -> None:
        if not isinstance(self.letters, str) or not re.fullmatch(r"[A-Z]{2,26}", self.letters):
            raise ValueError("'letters' is not a text of two or more capitals, as 'ABCD'")

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        if not isinstance(answer, str) or len(answer) != 1 or answer not in self.letters:
            return f"the answer {str(answer)[:60]!a} is not one of the letters {self.letters}"
        return None

    def check(self, answer: Any, text: str) -> bool:
        """Whether `text` chooses the letter `answer`."""
        return bool(chosen_letter(text, self.letters) == answer)


def chosen_letter(text: str, letters: str = "ABCD") -> str | None:
    """The letter that a text chooses, as a capital, or None."""
    upper, both = f"[{letters}]", f"[{letters}{letters.lower()}]"
    # A bare small letter may be the article "a": it must stand alone or in brackets.
    start = re.compile(
        rf"\W*(?:(?i:option|choice|letter)\b\W*)?"
        rf"(?:({upper})(?![\w'])|(?<=\()({both})(?=\))|({both})\W*$)"
    )
    right = r"(?:the\s)?(?:correct|right|best|true)\b(?!\s(?:only\s)?(?:if|when|unless)\b)"
    statement = re.compile(
        rf"(?P<not>\b(?i:neither|nor|not|if|whether|whichever|or)\s+(?:(?i:option|choice)\s)?)?"
        rf"(?<![\w'])\(?(?P<before>{upper})\)?\W{{0,3}}\s(?i:is|must be|would be|seems)\s(?i:{right})"
        rf"|\b(?i:option|choice|choose|pick|select|go with)\b\s?(?i:is|:|option|choice)?"
        rf"\W{{0,4}}(?P<after>{upper})(?![\w'])"
        rf"(?!\W{{0,3}}\s(?i:is|was|would|could|can|has|does|and|or|says|states|seems|may|might)\b)"
    )

    def announced(part: str) -> str | None:
        for segment in reversed(announcements(part)):
            segment = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\b", "", segment[:300])
            if match := start.match(segment):
                return next(group for group in match.groups() if group).upper()
        return None

    def unannounced(part: str) -> str | None:
        said = [m["before"] or m["after"] for m in statement.finditer(part) if not m["not"]]
        if said:
            return str(said[-1])
        for pattern in (
            rf"(?m)\A[^\w\n]*({both})[^\w\n]*$",
            rf"(?m)^[^\w\n]*({both})[^\w\n]*$",
            rf"\(({upper})\)",
            rf"\A[\s*_]*({upper})[).:]",
        ):
            found = re.findall(pattern, part)
            if found:
                return str(found[-1]).upper()
        return None

    return first_answer(text, announced, unannounced)
