"""Run Python code that a model wrote, so that its accidents stay its own.

This is a guard against accidents (endless loops, memory, deleted files, stray connections), not a
security boundary: code that sets out to escape can. For code of an adversary use a container or a
virtual machine around the whole program.

What every run gets, on every POSIX system:
- its own Python process without site-packages, in an empty temporary folder, with an empty
  environment, no input, and output that is thrown away;
- limits on time (wall clock; the whole process group is killed), CPU time, address space, file size
  and open files (macOS does not enforce the address space);
- an audit hook inside the process that refuses new processes, signals, connections, and changes of
  files outside the folder. It acts on Python's own calls: code that calls the C library through
  ctypes passes it. Files can be read everywhere that the user can read.

`Isolation` says what came on top:
- "namespaces" (Linux, where unprivileged user namespaces are allowed, or for root): no network
  interface exists, a limit on the number of processes (which the kernel does not apply to root), no
  other process is visible, and every process that the code started dies with it.
- "hooks": none of that. A process that code started past the hook, in a session of its own, outlives
  the run.

Memory is limited per process; there is no limit on the sum over processes that the hook did not stop.
"""

from __future__ import annotations

import functools
import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import BackendError, UsageError

Isolation = Literal["namespaces", "hooks"]

DEFAULT_SECONDS = 10.0
DEFAULT_MEMORY_BYTES = 512 << 20
_REPORT_BYTES = 4096
_CHILD = Path(__file__).with_name("sandbox_child.py")
_START_SECONDS = 60.0
_LEAST_MEMORY = 64 << 20
_USE_NAMESPACES = True  # tests turn it off, to see what holds without
_LEVELS: dict[bytes, Isolation] = {b"level namespaces": "namespaces", b"level hooks": "hooks"}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        ok: all of the code ran to its end.
        reason: why not; empty where it did.
        isolation: what kept the code in.
    """

    ok: bool
    reason: str
    isolation: Isolation


def run_python(
    code: str | Sequence[str],
    *,
    seconds: float = DEFAULT_SECONDS,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Outcome:
    """Run code in the sandbox and say whether it ran to its end.

    `sys.exit`, `os._exit` and the like before the end are failures, whatever the exit code: a run
    passes only by a token that is reported after the last line.

    Args:
        code: a program, or several that run one after the other in one namespace. Each is compiled
            on its own, so that an open quote in a solution cannot swallow the tests.
        seconds: wall-clock time for the code.
        memory_bytes: address space of the process; the interpreter itself takes about 30 MB.

    Raises:
        BackendError: the sandbox itself does not work on this system; never because of the code.
        UsageError: no time, or less than 64 MiB of memory.
    """
    if not seconds > 0 or memory_bytes < _LEAST_MEMORY:
        raise UsageError(f"A sandbox with {seconds} s and {memory_bytes} bytes is too small.")
    if os.name != "posix":
        raise BackendError("The sandbox for generated code needs Linux or macOS.")
    token = secrets.token_hex(16)
    request = {
        "parts": [code] if isinstance(code, str) else list(code),
        "token": token,
        "cpu_seconds": math.ceil(seconds) + 1,
        "memory_bytes": memory_bytes,
        "namespaces": _USE_NAMESPACES,
    }
    with tempfile.TemporaryDirectory(prefix="cospec-", ignore_cleanup_errors=True) as folder:
        request_path = Path(folder, "request.json")
        request_path.write_text(json.dumps(request), encoding="utf-8")
        report, write_end = os.pipe()
        try:
            process = _start(folder, request_path, write_end)
        except OSError as error:
            raise BackendError(f"The sandbox cannot start a process ({error}).") from error
        finally:
            os.close(write_end)
        try:
            return _outcome(report, token, seconds)
        finally:
            os.close(report)
            # Before the process is waited for: until then its group's number cannot be another's.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@functools.cache
def isolation() -> Isolation:
    """What keeps code in on this machine, found out by an empty run.

    Raises:
        BackendError: the sandbox does not work here.
    """
    return run_python("").isolation


def _start(folder: str, request_path: Path, report: int) -> subprocess.Popen[bytes]:
    # Not -I, which would ignore the fixed hash seed: the order of sets must not decide a test.
    command = [sys.executable, "-S", "-s", "-B", str(_CHILD), str(report), str(request_path)]
    environment = {
        "PATH": os.defpath,
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
    }
    return subprocess.Popen(  # noqa: S603 - our own interpreter and our own script
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(report,),
        start_new_session=True,
    )


def _outcome(report: int, token: str, seconds: float) -> Outcome:
    """Read the report until the code passed or failed, its process ended or its time is up."""
    received, _ = _read_line(report, b"", _START_SECONDS)
    first, _, rest = received.partition(b"\n")
    level = _LEVELS.get(first)
    if level is None:
        raise BackendError(
            "The sandbox for generated code did not start.",
            hint=f"Try `{sys.executable} -S -c 'import ctypes, json, resource'`.",
        )
    received, in_time = _read_line(report, rest, seconds)
    line, whole, _ = received.partition(b"\n")
    text = line.decode(errors="replace")
    if text == f"passed {token}" and whole:
        return Outcome(True, "", level)
    if text.startswith("failed "):
        reason = text.removeprefix("failed ")
    elif not in_time:
        reason = f"took longer than {seconds:g} s"
    elif received:
        reason = "wrote to the sandbox's own report"
    else:
        reason = "ended its process before the end of the code"
    return Outcome(False, reason, level)


def _read_line(descriptor: int, received: bytes, seconds: float) -> tuple[bytes, bool]:
    """`received` and what follows up to the end of a line or of the writer; False: out of time."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while b"\n" not in received and len(received) < _REPORT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return received, False
        chunk = os.read(descriptor, _REPORT_BYTES)
        if not chunk:
            break
        received += chunk
    return received, True
