"""What ends an output beside the tokens themselves: stop texts, a deadline, the caller."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from time import perf_counter
from typing import Literal

from ...errors import UsageError


class StopTexts:
    """Finds the first stop text in a growing output, and holds back what may become one.

    Args:
        stops: texts that end the output where they first occur.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return what is certain to belong to the output, and whether a stop text ended it.

        Of several stop texts that are complete, the one that begins first counts.
        """
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """Return what was held back: the output ended before it became a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`, short of all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class Interrupt:
    """Ends a generation early: at a deadline, or when another thread says so.

    Args:
        timeout: seconds from now, or None.

    Raises:
        UsageError: a timeout that is not above 0.
    """

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout is {timeout} seconds, but must be above 0")
        self._deadline = None if timeout is None else perf_counter() + timeout
        self._cancelled = Event()

    def cancel(self) -> None:
        """End the generation before its next pass; from any thread."""
        self._cancelled.set()

    def reason(self) -> Literal["cancelled", "timeout"] | None:
        """Return why the generation must end now, or None."""
        if self._cancelled.is_set():
            return "cancelled"
        if self._deadline is not None and perf_counter() >= self._deadline:
            return "timeout"
        return None
