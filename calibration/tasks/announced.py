"""Find where a model's text announces its final answer."""

from __future__ import annotations

import re
from collections import deque

MAX_TEXT = 200_000
"""Characters looked at, from the end. This and the next two bound the time that any text costs."""
_MAX_MARKERS = 50
_MAX_BOX = 2000

_MARKER = re.compile(
    r"(?P<hash>\#\#\#\#)"
    r"|(?P<boxed>\\(?:boxed|fbox)\b)"
    r"|\banswer\b[^.\n:=]{0,60}?(?::|=|\bis\b|\bare\b)",
    re.IGNORECASE,
)
_SEGMENT = re.compile(r"[\s*_:=~]*([^\n]{0,300})")


def announcements(text: str) -> list[str]:
    r"""What follows each announcement of an answer, in the order of the text.

    Announcements are `####`, `Answer:`, `the answer is`, `\boxed{}` and the like. Of a box the
    content is returned, of the others the rest of the line (or of the next, where nothing follows
    on the same line).
    """
    text = text[-MAX_TEXT:]
    found = []
    for marker in _markers(text):
        if marker["boxed"]:
            content = _in_braces(text, marker.end())
            if content is not None:
                found.append(content)
            continue
        segment = _SEGMENT.match(text, marker.end())
        if segment and segment[1].strip():
            found.append(segment[1].strip())
    return found


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \boxed x), or None."""
    text = text[-MAX_TEXT:]
    for marker in reversed(_markers(text)):
        content = _in_braces(text, marker.end()) if marker["boxed"] else None
        if content is not None:
            return content
    return None


def _markers(text: str) -> list[re.Match[str]]:
    """The last announcements of a text, in its order."""
    return list(deque(_MARKER.finditer(text), maxlen=_MAX_MARKERS))


def last_line(text: str) -> str:
    """The last line that is not blank, or an empty text."""
    return text[-MAX_TEXT:].rstrip().rpartition("\n")[2].strip()


def _in_braces(text: str, position: int) -> str | None:
    """The balanced {...} at a position, without the braces; or the one word that stands there."""
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
