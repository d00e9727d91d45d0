"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing about a machine.

    Attributes:
        level: `problem`: something that was installed to work does not; `warning`: it may not.
        topic: a word.
        message: what was found.
        fix: the command that solves it, or None.
    """

    level: Level
    topic: str
    message: str
    fix: str | None = None


def ok(topic: str, message: str, fix: str | None = None) -> Finding:
    """It works; `fix` would add more."""
    return Finding("ok", topic, message, fix)


def warning(topic: str, message: str, fix: str | None = None) -> Finding:
    """It works, and not as well as it could."""
    return Finding("warning", topic, message, fix)


def problem(topic: str, message: str, fix: str | None = None) -> Finding:
    """It does not work."""
    return Finding("problem", topic, message, fix)


def install(*extras: str) -> str:
    """Return the command that installs extras of cospec."""
    return f'pip install "cospec[{",".join(extras)}]"'


def listed(names: list[str]) -> str:
    """Return names for people."""
    return ", ".join(names)
