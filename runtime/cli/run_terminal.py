"""Input lines from a terminal: editing, history, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import click

from ..decoding.completion import Stream

HISTORY_LINES = 1000


def lines(terminal: bool) -> Iterator[str]:
    """Yield the lines of standard input; on a terminal, Ctrl-C discards the current line."""
    if not terminal:
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo("\nCtrl-D ends the chat", err=True)


@contextmanager
def ctrl_c_cancels(stream: Stream) -> Iterator[None]:
    """Cancel the answer at the first Ctrl-C, before its next pass; a second one ends the command."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def line_editing(terminal: bool) -> Iterator[None]:
    """Edit lines with the arrow keys, and keep a history over conversations."""
    try:
        import readline  # makes input() edit lines; Windows has none
    except ImportError:
        terminal = False
    if not terminal:
        yield
        return
    path = history_path()
    with suppress(OSError):  # there is none yet, or it cannot be read: a convenience, no more
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # what people ask is theirs
            readline.write_history_file(path)


def history_path() -> Path:
    """Return where the lines of conversations are remembered, after the XDG specification."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "cospec" / "history"
