"""What to do about a line that cannot be used: stop with an error, or skip it and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import UsageError

OnBadLine = Literal["stop", "skip"]


@dataclass(frozen=True)
class BadLine:
    """A line (or, in files that are not made of lines, an item) that was skipped.

    Attributes:
        path: the file.
        number: counted from 1.
        problem: what is wrong with it.
        unit: "line" or "item".
    """

    path: Path
    number: int
    problem: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}: {self.problem}"


Report = Callable[[BadLine], object]


def warn(bad: BadLine) -> None:
    """Report a skipped line as a Python warning: what happens where nobody asks to be told."""
    warnings.warn(f"skipped {bad}", stacklevel=2)


class BadLines:
    """The policy for one reading of one file.

    Args:
        path: the file that is read.
        on_bad_line: "stop" raises at the first bad line; "skip" reports each and goes on.
        report: called with each skipped line; a Python warning each if None.

    Raises:
        UsageError: `on_bad_line` is neither.
    """

    def __init__(self, path: Path, on_bad_line: OnBadLine, report: Report | None) -> None:
        if on_bad_line not in ("stop", "skip"):
            raise UsageError(f"on_bad_line is {on_bad_line!r}", hint='give "stop" or "skip"')
        self.path = path
        self.count = 0
        self._stop = on_bad_line == "stop"
        self._report = report or warn

    def found(self, number: int, problem: str, unit: str = "line") -> None:
        """Deal with one bad line. Raises UsageError where bad lines stop the reading."""
        bad = BadLine(self.path, number, problem, unit)
        if self._stop:
            raise UsageError(
                str(bad),
                hint=f"Mend or remove it, or go on without such {unit}s (on_bad_line='skip').",
            )
        self.count += 1
        self._report(bad)

    def require_some(self, found: int) -> None:
        """Raise UsageError where nothing usable was found in the file."""
        if found:
            return
        why = f"all {self.count} were skipped" if self.count else "it is empty"
        raise UsageError(f"{self.path} holds no tasks: {why}.")
