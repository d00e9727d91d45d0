"""The checker `text`: is a short answer one of the accepted ones, after normalisation.

Normalised as for SQuAD and TriviaQA: small letters, no punctuation, no articles, single spaces.
The short answer of a text is what it announces last ("Answer: ..."), or else its last line.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Any

from .announced import MAX_TEXT, announcements, last_line

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´“”–—…", " "))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WHERE = ("answer", "anywhere")


def normalise(text: str) -> str:
    """Small letters, punctuation and articles as spaces, spaces single."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True)
class TextChecker:
    """Compares a short answer with a text, or with a list of accepted texts.

    `where`: "answer" compares the short answer as a whole; "anywhere" is content with an accepted
    text that occurs in whole words anywhere (lenient: it also passes a list of guesses).
    """

    where: str = "answer"

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise ValueError(f"'where' is none of {', '.join(WHERE)}")

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        accepted = [answer] if isinstance(answer, str) else answer
        if not isinstance(accepted, list) or not all(isinstance(text, str) for text in accepted):
            return "the answer is neither a text nor a list of texts"
        if not any(map(normalise, accepted)):
            return "the answer is empty after normalisation"
        return None

    def check(self, answer: Any, text: str) -> bool:
        """Whether `text` gives one of the accepted answers."""
        accepted = {normalise(one) for one in ([answer] if isinstance(answer, str) else answer)}
        accepted.discard("")
        if self.where == "anywhere":
            given = f" {normalise(text[-MAX_TEXT:])} "
            return any(f" {one} " in given for one in accepted)
        announced = announcements(text)
        return normalise(announced[-1] if announced else last_line(text)) in accepted
