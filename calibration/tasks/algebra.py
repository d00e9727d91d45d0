"""Ask math-verify whether two expressions are equal, in a process of its own.

math-verify parses LaTeX into sympy, which takes any time and memory for some texts (`9^{9^{9^9}}`), and
its own time-outs work only in a main thread and between Python instructions. So a child process with
limits answers, one for each process that asks; one that does not answer in time is replaced.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

from ...errors import MissingExtraError

SECONDS = 5.0
START_SECONDS = 60.0
MAX_EXPRESSION = 300
"""Longer expressions are not compared."""

_CHILD = Path(__file__).with_name("algebra_child.py")


def require_math_verify() -> None:
    """Raise MissingExtraError where math-verify is not installed."""
    try:
        found = importlib.util.find_spec("math_verify")
    except ValueError:  # a module that was put into sys.modules without its specification
        found = None
    if found is None:
        raise MissingExtraError("math-verify", "calibrate", "Comparing mathematical expressions")


def is_equal(gold: str, given: str) -> bool:
    """Whether math-verify finds two LaTeX expressions equal; False where it cannot tell in time.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    if max(len(gold), len(given)) > MAX_EXPRESSION:
        return False
    return _verifier(os.getpid()).ask(gold, given)


@functools.lru_cache(maxsize=1)
def _verifier(process: int) -> _Verifier:  # a forked process may not share its parent's pipes
    require_math_verify()
    return _Verifier()


class _Verifier:
    """A child process that is started when it is first asked, and again after it failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self._stop)

    def ask(self, gold: str, given: str) -> bool:
        """Whether the child finds the two equal."""
        request = json.dumps([gold, given]).encode() + b"\n"
        with self._lock:
            child = self._child or self._start()
            reply = _exchange(child, request, SECONDS)
            if reply is None:
                self._stop()
            return reply == b"true\n"

    def _start(self) -> subprocess.Popen[bytes]:
        # Not by module name: the child imports nothing of ours. An unbuffered pipe can be polled.
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own script
            [sys.executable, str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        _exchange(self._child, b"", START_SECONDS)
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _exchange(child: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes | None:
    """Send a request and read the line that answers it, or return None."""
    assert child.stdin is not None  # both are pipes
    assert child.stdout is not None
    try:
        child.stdin.write(request)
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        return child.stdout.readline() if ready else None
    except OSError:
        return None
