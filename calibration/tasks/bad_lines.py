"""Lines of a file that cannot be used: stop with an error, or skip and report them."""

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
    """A line that was skipped; in files that have no lines, an item.

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
    """Report a skipped line as a Python warning, which is the default."""
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
        """Skip and report one bad line, or raise UsageError if bad lines stop the reading."""
        bad = BadLine(self.path, number, problem, unit)
        if self._stop:
            raise UsageError(
                str(bad),
                hint=f"Correct or remove it, or skip such {unit}s (on_bad_line='skip').",
            )
        self.count += 1
        self._report(bad)

    def require_some(self, found: int) -> None:
        """Raise UsageError if no usable line was found in the file."""
        if found:
            return
        why = f"all {self.count} were skipped" if self.count else "it is empty"
        raise UsageError(f"{self.path} holds no tasks: {why}.")
