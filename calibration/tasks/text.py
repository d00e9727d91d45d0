"""The checker `text`: is a short answer one of the accepted ones, after normalisation.

Normalised as for SQuAD and TriviaQA: small letters without accents, no punctuation, no articles,
single spaces. The short answer is what the first complete answer of the text (announced.py)
announces last ("Answer: ..."), or else its last line.
"""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from typing import Any

from .announced import announcements, first_answer, last_line

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´“”–—…", " "))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WHERE = ("answer", "anywhere")


def normalise(text: str) -> str:
    """Small letters without accents, punctuation and articles as spaces, spaces single."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True)
class TextChecker:
    """Compares a short answer with a text, or with a list of accepted texts.

    `where`: "answer" compares the short answer as a whole; "anywhere" accepts a text that contains an
    accepted one as whole words (lenient: a list of guesses passes too).
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
            given = f" {normalise(first_answer(text, str, str) or '')} "
            return any(f" {one} " in given for one in accepted)
        last = first_answer(text, lambda part: next(reversed(announcements(part)), None), last_line)
        return normalise(last or "") in accepted
