"""What ends an output besides its tokens: stop texts, a deadline, the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Lock, Timer
from time import perf_counter
from typing import Literal

from ...errors import UsageError
from ..engines.protocol import Interruptible


class StopTexts:
    """Finds the first stop text in a growing output, and holds back what may become one.

    A special token has no text in the output, but a stop text may spell one. It is matched as a whole,
    so that the stop text `e` does not end an output at `<eos>`.

    Args:
        stops: texts that end the output where they first occur.
        special: spelling of special tokens, by id.
    """

    def __init__(self, stops: Sequence[str], special: Mapping[int, str] | None = None) -> None:
        named = {text for text in (special or {}).values() if any(text in stop for stop in stops)}
        longest_first = sorted(named, key=len, reverse=True)
        # Text never contains single surrogates, so each can stand for a special token.
        marks = {text: chr(_FIRST_MARK + i) for i, text in enumerate(longest_first)}
        marked = list(stops)
        for text, mark in marks.items():
            marked = [stop.replace(text, mark) for stop in marked]
        self._marks = {
            token: marks[text] for token, text in (special or {}).items() if text in marks
        }
        self._stops = tuple(dict.fromkeys([*stops, *marked]))
        self._held = ""

    def push(self, text: str, token: int | None = None) -> tuple[str, bool]:
        """Add text; return what is certain to belong to the output, and whether a stop text ended it.

        Of several stop texts that are complete, the one that begins first counts.

        Args:
            text: of the output.
            token: that it ends with; only special tokens matter.
        """
        text = self._held + text + ("" if token is None else self._marks.get(token, ""))
        found = [at for at in map(text.find, self._stops) if at >= 0]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        end = min(found) if found else len(text) - keep
        self._held = "" if found else text[end:]
        return self._without_marks(text[:end]), bool(found)

    def finish(self) -> str:
        """Return what was held back: the output ended before it became a stop text."""
        held, self._held = self._held, ""
        return self._without_marks(held)

    def _without_marks(self, text: str) -> str:
        for mark in self._marks.values():
            text = text.replace(mark, "")
        return text


_FIRST_MARK = 0xD800


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop` without completing it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def interruptible(decoders: Iterable[object]) -> list[Interruptible]:
    """Return the decoders whose passes can be ended; those of others run to their end."""
    return [each for each in decoders if isinstance(each, Interruptible)]


class Interrupt:
    """Ends a generation early: at a deadline, or when another thread cancels it.

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
        self._lock = Lock()
        self._passing: Sequence[Interruptible] = ()
        self._timer: Timer | None = None

    def cancel(self) -> None:
        """End the generation before its next pass, and the pass that runs; from any thread."""
        self._cancelled.set()
        self._end_passes()

    @contextmanager
    def ends_passes(self, decoders: Sequence[Interruptible]) -> Iterator[None]:
        """End the passes of the body, too, on these decoders; see `interruptible`."""
        if self._deadline is not None and self._timer is None:
            self._timer = Timer(max(0.0, self._deadline - perf_counter()), self._end_passes)
            self._timer.daemon = True
            self._timer.start()
        with self._lock:
            self._passing = decoders
        try:
            yield
        finally:
            with self._lock:
                for decoder in self._passing:
                    decoder.resume()
                self._passing = ()

    def close(self) -> None:
        """Stop the clock: the generation has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _end_passes(self) -> None:
        with self._lock:
            for decoder in self._passing:
                decoder.interrupt()

    def reason(self) -> Literal["cancelled", "timeout"] | None:
        """Return why the generation must end now, or None."""
        if self._cancelled.is_set():
            return "cancelled"
        if self._deadline is not None and perf_counter() >= self._deadline:
            return "timeout"
        return None
