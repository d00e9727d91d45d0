r"""Find the answer in a model's text: without thoughts, without what runs on, where it is announced.

1. Thoughts are cut off: `<think>...</think>` and the like. A mark that is never closed hides the
   rest of the text; one that was never opened hides what is before it (a chat template opened it).
2. The text is split where another turn or question begins: a special token of a chat template,
   `Question:`, `Q:`, `Problem 2.`, `### Instruction`, `User:`. The first part with a complete answer
   counts, so that a text that runs on after its answer is judged by its first answer.
3. Within one part the last announcement counts, because models correct themselves ("The answer is
   5. Wait, I forgot one. The answer is 6."). `#### 18` ends an answer by its form: a later
   announcement counts only if words of correction (wait, actually, mistake, ...) follow at once.
4. Without an announcement a first line that is nothing but a number (or a letter, for `choice`) is the
   answer: a base model may run on after it in any way. Otherwise the last number (line, ...) counts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import TypeVar

MAX_TEXT = 200_000
"""Characters that are read after the thoughts. This and the next two bound the time per text."""
_MAX_MARKERS = 50
_MAX_BOX = 2000
_CORRECTS_WITHIN = 80
"""A correction begins in this many characters after the answer; later its words are a story's."""

_THOUGHT_TAGS = "think|thinking|thought|reasoning|scratchpad|seed:think"
_THOUGHTS = re.compile(
    rf"(?P<open><(?:{_THOUGHT_TAGS})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<unused94>"
    r"|<\|channel\|>(?:analysis|commentary)<\|message\|>)"
    rf"|</(?:{_THOUGHT_TAGS})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<unused95>"
    r"|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_RUN_ON = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|</?s>|<eos>|<(?:start|end)_of_turn>|\[/?INST\]"
    # A line (or a sentence) that begins "Question:", "**Q:**", "Problem 2." or "User:".
    r"|(?:^[ \t>#*_-]{0,12}|(?<=[.!?])[ \t]{1,4})"
    r"(?:(?:next|new|another)[ ])?(?:question|problem|exercise|q|user|human|instruction)"
    r"(?:[ ]?\#?\d{1,4})?[ ]?[*_]{0,3}:"
    r"|^[ \t>#*_-]{0,12}(?:question|problem|exercise|example)[ ]\#?\d{1,4}[ ]?[*_]{0,3}[.):]"
    r"|^\#{1,6}[ ](?:next[ ])?(?:question|problem|exercise|instruction|user|human)\b[^\n]{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)
_MARKER = re.compile(
    # A heading: "### Answer" or "**Final Answer**".
    r"(?:^|(?<=\n))(?:\#{1,6}[ ]|\*\*)(?:the[ ])?(?:final[ ])?answer[ ]?(?:\*\*)?[ \t]{0,8}(?=\n)"
    r"|(?P<hash>\#\#\#\#)"
    r"|(?P<boxed>\\(?:boxed|fbox)\b)"
    r"|<answer>"
    r"|(?<!/)\banswer\b[^.\n:=]{0,60}?(?::|=|\bis\b|\bare\b)",
    re.IGNORECASE,
)
_SEGMENT = re.compile(r"[\s*_:=~]*((?:(?!</answer>)[^\n]){0,300})", re.IGNORECASE)
_HEADING = re.compile(r"\W*(?:(?:step|part)\b|\d{1,2}[.):]\s+[A-Za-z])", re.IGNORECASE)
_FIRST_LINE = re.compile(r"\s*([^\n]{1,60}?)\.?[ \t]*\n(?!\s*[-+*/=x×÷])\s*\S")
_FINAL = re.compile(r"[$€£]?-?[$€£]?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?%?(?:\s[a-z]{1,20}){0,3}\.?\s*")
_CORRECTION = re.compile(
    r"\b(?:wait|actually|no[,.]|not right|sorry|correction|corrected|mistake|error|wrong|incorrect"
    r"|oops|hold on|hmm|scratch that|revised|should be|(?:re-?|double[ -])(?:check|comput"
    r"|calculat|consider|do)\w*)",
    re.IGNORECASE,
)

Found = TypeVar("Found")
Reader = Callable[[str], Found | None]


def first_answer(text: str, announced: Reader[Found], unannounced: Reader[Found]) -> Found | None:
    """The first complete answer of a text, or None.

    Args:
        text: a model's output.
        announced: reads the answer that a part of the text announces, or returns None.
        unannounced: reads an answer that is not announced, as the last number or line.
    """
    first, *later = _RUN_ON.split(_without_thoughts(text)[:MAX_TEXT])
    reads = [(first, announced), (first, unannounced)]
    reads += [(part, reader) for reader in (announced, unannounced) for part in later]
    found = (reader(part) for part, reader in reads if part.strip())
    return next((answer for answer in found if answer is not None), None)


def _without_thoughts(text: str) -> str:
    kept: list[str] = []
    position, inside = 0, False
    for mark in _THOUGHTS.finditer(text):
        if not inside:
            kept.append(text[position : mark.start()])
        if not inside and not mark["open"]:
            kept.clear()
        position, inside = mark.end(), mark["open"] is not None
    return "".join(kept) + ("" if inside else text[position:])


def announcements(text: str) -> list[str]:
    r"""What follows each announcement of an answer, in the order of the text.

    Announcements are `####`, `Answer:`, `the answer is`, `### Answer`, `<answer>`, `\boxed{}` and the
    like. Of a box the content is returned, of the others the rest of the line, or of the next line if
    nothing follows on the same one.
    """
    found: list[str] = []
    ended: int | None = None
    for marker in _markers(text):
        if ended is not None:
            if not _CORRECTION.search(text, ended, min(ended + _CORRECTS_WITHIN, marker.start())):
                break
            ended = None
        if marker["boxed"]:
            content = _in_braces(text, marker.end())
            if content is not None:
                found.append(content)
            continue
        segment = _SEGMENT.match(text, marker.end())
        if marker["hash"] and segment and _HEADING.match(segment[1]):
            continue  # a heading in Markdown
        if segment and segment[1].strip():
            found.append(segment[1].strip())
            if marker["hash"] and _FINAL.fullmatch(segment[1]):
                ended = segment.end()
    return found


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \boxed x), or None."""
    for marker in reversed(_markers(text)):
        content = _in_braces(text, marker.end()) if marker["boxed"] else None
        if content is not None:
            return content
    return None


def _markers(text: str) -> list[re.Match[str]]:
    """The last announcements of a text, in its order."""
    return list(deque(_MARKER.finditer(text), maxlen=_MAX_MARKERS))


def last_line(text: str) -> str | None:
    """The last line that is not blank, or None."""
    return text.rstrip().rpartition("\n")[2].strip() or None


def bare_first_line(text: str) -> str | None:
    """The first line if more lines follow, and none of them calculates on with it; or None."""
    match = _FIRST_LINE.match(text)
    return match[1] if match else None


def _in_braces(text: str, position: int) -> str | None:
    """The balanced {...} at a position, without the braces; or the single word that is there."""
    while position < len(text) and text[position] == " ":
        position += 1
    if not text.startswith("{", position):
        word = re.compile(r"[^\s$]{1,100}").match(text, position)
        return word[0] if word else None
    depth = 0
    for index in range(position, min(len(text), position + _MAX_BOX)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[position + 1 : index].strip()
    return None
