"""Functions in forked children: a campaign imports its libraries once, and each case has a process.

The parent must not have run a model: the threads of a library do not live on in a child.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

PIPE_BYTES = 1 << 20
STEP = 0.002
"""Seconds between two looks at a child."""


class Child:
    """A function in a process of its own, which leads a group of processes.

    The exit code is what the function returns if that is a number, 1 after an exception, and what it
    passes to `sys.exit`. Standard output and error go to a pipe, which no limit of files concerns; what
    does not fit into it would stop the child.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._reader, writer = os.pipe()
        with suppress(PermissionError):  # this user has too much in other pipes
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            _run(function, writer)
        os.close(writer)

    def said(self) -> str:
        """Return what a child that has ended wrote."""
        os.set_blocking(self._reader, False)
        with os.fdopen(self._reader, "rb") as stream:
            return (stream.read() or b"").decode(errors="replace")

    def wait(self, seconds: float = 0.0) -> int | None:
        """Wait for the end; return the exit code, minus the signal's number, or None if it lives."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return None
            else:
                time.sleep(STEP)
        return self.code

    def send(self, number: int) -> None:
        """Send a signal."""
        if self.wait() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the child and all that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.send(signal.SIGKILL)
        self.wait(60)


def _run(function: Callable[[], object], writer: int) -> NoReturn:
    code: object = 1
    try:
        os.setsid()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        # New objects: those of the parent remember whether they can be rewound.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        code = function()
    except SystemExit as error:
        code = error.code
    except BaseException:  # the parent reads it
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # not the parent's cleaning up
            os._exit(code if isinstance(code, int) else int(bool(code)))


def call(
    function: Callable[[], object], *, seconds: float = 600.0, memory: int | None = None
) -> tuple[int | None, str]:
    """Call a function in a child; return its exit code, None if it was too slow, and what it printed.

    Args:
        function: what to call.
        seconds: after which the child is killed.
        memory: bytes of address space that the child may have; None for any number.
    """

    def limited() -> object:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        return function()

    child = Child(limited)
    code = child.wait(seconds)
    if code is None:
        child.kill()
    return code, child.said()
