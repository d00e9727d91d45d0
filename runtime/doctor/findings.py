"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing about a machine.

    Attributes:
        level: `problem` keeps something from working that was meant to; `warning` may.
        topic: what it is about, in a word.
        message: what was found.
        fix: the command that mends it, or None.
    """

    level: Level
    topic: str
    message: str
    fix: str | None = None


def ok(topic: str, message: str, fix: str | None = None) -> Finding:
    """Nothing to mend; `fix` is what would add more."""
    return Finding("ok", topic, message, fix)


def warning(topic: str, message: str, fix: str | None = None) -> Finding:
    """Works, and not as well as it could."""
    return Finding("warning", topic, message, fix)


def problem(topic: str, message: str, fix: str | None = None) -> Finding:
    """Does not work."""
    return Finding("problem", topic, message, fix)


def install(*extras: str) -> str:
    """Return the command that installs extras of cospec."""
    return f'pip install "cospec[{",".join(extras)}]"'


def listed(names: list[str]) -> str:
    """Return names for people."""
    return ", ".join(names)
