"""Split the reasoning of a thinking model from its answer, while the text arrives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ...errors import UsageError


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts around a model's reasoning.

    Attributes:
        begin: before the reasoning.
        end: after it.

    Raises:
        UsageError: one of them is empty.
    """

    begin: str
    end: str

    def __post_init__(self) -> None:
        if not self.begin or not self.end:
            raise UsageError("both marks of the reasoning must be texts")


KNOWN_MARKS = (
    ReasoningMarks("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, GLM 4.5, SmolLM 3, ...
    ReasoningMarks("[THINK]", "[/THINK]"),  # Magistral
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ReasoningMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningMarks("<|channel>thought", "<channel|>"),  # Gemma 4
)


def marks_in(templates: Iterable[str]) -> ReasoningMarks | None:
    """Return the marks that chat templates write around reasoning, or None."""
    text = "\n".join(templates)
    return next((m for m in KNOWN_MARKS if m.begin in text and m.end in text), None)


def is_open(text: str, marks: ReasoningMarks) -> bool:
    """Say whether a text ends within reasoning."""
    return text.rfind(marks.begin) > text.rfind(marks.end)


class ReasoningSplitter:
    """Splits a growing text. Marks, and the line breaks beside them, belong to neither part.

    Args:
        marks: around the reasoning.
        inside: the prompt has the first mark already, so the text begins within the reasoning.
    """

    def __init__(self, marks: ReasoningMarks, *, inside: bool = False) -> None:
        self._marks = marks
        self._inside = inside
        self._part: Literal["unknown", "reasoning", "answer"] = "unknown"
        self._at_begin = True  # of a part: line breaks are left out
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Add text; return what is certain to be reasoning, and what is certain to be answer."""
        self._held += text
        if self._part == "unknown":
            self._choose()
        reasoning = self._reasoning() if self._part == "reasoning" else ""
        answer = self._take(len(self._held)) if self._part == "answer" else ""
        return reasoning, answer

    def finish(self) -> tuple[str, str]:
        """Return what was held back: the text has ended."""
        if self._part == "unknown":
            self._begin_unmarked()
        if self._part == "answer":
            return "", self._take(len(self._held))
        return self._take(len(self._held)).rstrip("\n"), ""

    def _choose(self) -> None:
        """Find out which part the text begins with, as soon as that is certain."""
        text, begin = self._held.lstrip(), self._marks.begin
        if text.startswith(begin):
            self._held = text[len(begin) :]
            self._begin("reasoning")
        elif not begin.startswith(text):
            self._begin_unmarked()

    def _begin_unmarked(self) -> None:
        """Begin with the part that the prompt leads to; an answer alone is kept as it is."""
        self._part, self._at_begin = ("reasoning", True) if self._inside else ("answer", False)

    def _begin(self, part: Literal["reasoning", "answer"]) -> None:
        self._part, self._at_begin = part, True

    def _reasoning(self) -> str:
        """Take the reasoning that is certain."""
        end = self._marks.end
        at = self._held.find(end)
        if at >= 0:
            reasoning = self._take(at).rstrip("\n")
            self._held = self._held[len(end) :]
            self._begin("answer")
            return reasoning
        size = min(len(self._held), len(end) - 1)
        while size and not self._held.endswith(end[:size]):
            size -= 1
        return self._take(len(self._held[: len(self._held) - size].rstrip("\n")))

    def _take(self, size: int) -> str:
        """Take so many characters of what is held back."""
        taken, self._held = self._held[:size], self._held[size:]
        if self._at_begin:
            taken = taken.lstrip("\n")
            self._at_begin = not taken
        return taken
