"""Run Python code that a model wrote, and tests of it that it cannot reach.

A solution and its tests run in two processes (sandbox_child.py). The tests call the solution's
functions through a pipe and get values of builtin types back (sandbox_peer.py), so that an object that
equals everything, replaced builtins, or a walk through frames and memory find nothing to change.

What keeps the code in is the isolation, from strong to weak:

- "bubblewrap": namespaces of its own for users, processes, network, mounts and IPC, made by bwrap,
  and a filter of system calls. The code is nobody, sees no other process, no network, and of the
  files only /usr and the interpreter, all read-only. It can write 64 MiB into its own /tmp, and start
  threads but no processes.
- "limits": none of that, only an audit hook against accidents, which code can get around. For systems
  without bwrap (macOS, containers that forbid namespaces), where a container or a virtual machine
  around the whole program keeps the code in.

On both: no site-packages, an empty environment, no input and output, and limits on time, memory for
each process, size of a file (4 MiB), open files (32) and threads (256).

Limits of tests. Objects of the solution's own classes reach the tests only where the tests make them
(`Stack()`; see names_used.py), and a test that asks such an object is judged by its class. A function
changes its arguments in the tests only if it returns None. Named tuples arrive as tuples, other derived
types as their base types. Coroutines and context managers do not arrive.
"""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendError, UsageError
from .isolation import (
    FILTER,
    LEVELS,
    TMP,
    Isolation,
    Method,
    find_methods,
    interpreter,
    system_call_filter,
)
from .names_used import names_used

DEFAULT_SECONDS = 10.0
DEFAULT_MEMORY_BYTES = 512 << 20
_REPORT_BYTES = 4096
_START_SECONDS = 60.0
_LEAST_MEMORY = 64 << 20
_START = "import marshal, sys; stream = open(int(sys.argv[1]), 'rb'); exec(marshal.load(stream))"
_SOURCES = ("sandbox_remote.py", "sandbox_peer.py", "sandbox_child.py")


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
    entry_point: str | None = None,
    helpers: str = "",
    seconds: float = DEFAULT_SECONDS,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Outcome:
    """Run a solution and its tests in the sandbox, and return whether the tests ran to their end.

    Args:
        code: a program, or several. Of several the last one is the tests, which run apart from those
            before; these run one after the other in one namespace. Each is compiled on its own. A
            program alone has no tests, and is asked itself whether it ran to its end.
        entry_point: the function that the tests are about; taken from the solution whatever its name.
        helpers: code of the tests' author that the tests may use. The solution has no part in it.
        seconds: wall-clock time for the code.
        memory_bytes: address space of each process; the interpreter itself takes about 30 MB.

    Raises:
        BackendError: the sandbox itself does not work on this system; never because of the code.
        UsageError: no time, or less than 64 MiB of memory.
    """
    if not seconds > 0 or memory_bytes < _LEAST_MEMORY:
        raise UsageError(f"A sandbox with {seconds} s and {memory_bytes} bytes is too small.")
    parts = [code] if isinstance(code, str) else list(code)
    tests = parts.pop() if len(parts) > 1 else ""
    names, objects = names_used(tests, helpers, entry_point)
    payload = {"entry_point": entry_point, "helpers": helpers, "tests": tests}
    return _run(
        _method(),
        {"parts": parts},
        {**payload, "names": names, "objects": objects},
        {"cpu_seconds": math.ceil(seconds) + 1, "memory_bytes": memory_bytes},
        seconds,
    )


def isolation() -> Isolation:
    """What keeps code in on this machine, found out by an empty run.

    Raises:
        BackendError: the sandbox does not work here.
    """
    return _method().level


def require_isolation(level: Isolation) -> None:
    """Refuse a machine on which generated code is less isolated than `level`.

    Raises:
        BackendError: it is, or the sandbox does not work here.
    """
    found = isolation()
    if LEVELS.index(found) > LEVELS.index(level):
        raise BackendError(
            f"Generated code would run with the isolation '{found}' on this machine, which keeps out "
            f"accidents only; '{level}' is required.",
            hint='On Linux: pip install "cospec[sandbox]", and allow user namespaces. Inside a '
            f"container or a virtual machine that may be lost: --sandbox-level {found}.",
        )


@functools.cache
def _method() -> Method:
    """The first way that works.

    Raises:
        BackendError: none does.
    """
    if os.name != "posix":
        raise BackendError("The sandbox for generated code needs Linux or macOS.")
    problem = "no way to start it"
    for method in find_methods():
        try:
            outcome = _run(method, {"parts": [_PROBE]}, _EMPTY, _LEAST_LIMITS, DEFAULT_SECONDS)
        except BackendError as error:
            problem = error.message
            continue
        if outcome.ok:
            return method
        problem = outcome.reason
    raise BackendError(
        f"The sandbox for generated code does not start: {problem}.",
        hint=f"Try `{sys.executable} -S -c 'import json, resource'`.",
    )


# Another user may find the library of another Python.
_PROBE = f"import json\nassert json.__file__ == {json.__file__!r}, json.__file__"
_EMPTY: dict[str, Any] = {
    "entry_point": None,
    "helpers": "",
    "tests": "",
    "names": [],
    "objects": False,
}
_LEAST_LIMITS = {"cpu_seconds": 10, "memory_bytes": DEFAULT_MEMORY_BYTES}


@functools.cache
def _program() -> bytes:
    """The code of both processes, compiled: compiling takes as long as starting Python."""
    folder = Path(__file__).parent
    text = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SOURCES)
    return marshal.dumps(compile(text, "<sandbox>", "exec", dont_inherit=True))


def _run(
    method: Method,
    solution: dict[str, Any],
    tests: dict[str, Any],
    limits: dict[str, Any],
    seconds: float,
) -> Outcome:
    """Start both processes and wait for the report of the tests."""
    with contextlib.ExitStack() as stack:
        is_isolated = method.level == "bubblewrap"
        folder = stack.enter_context(_folder(method))
        (asked, asks), (answered, answers), (report, reports) = (os.pipe() for _ in range(3))
        stack.callback(os.close, report)
        roles: list[tuple[dict[str, Any], dict[str, int]]] = [
            (tests, {"reader": answered, "writer": asks, "report": reports}),
            (solution, {"reader": asked, "writer": answers}),
        ]
        with contextlib.ExitStack() as given:
            for end in (asked, asks, answered, answers, reports):
                given.callback(os.close, end)
            for payload, descriptors in roles:
                settings = {**limits, **payload, **descriptors, "guard": not is_isolated}
                file = _temporary_file(given, _program() + json.dumps(settings).encode())
                passed = [file, *descriptors.values()]
                if is_isolated:
                    passed.append(_temporary_file(given, system_call_filter()))
                command = [str(passed[-1]) if word == FILTER else word for word in method.command]
                try:
                    process = _start(command, folder, passed, TMP if is_isolated else folder)
                except OSError as error:
                    raise BackendError(f"The sandbox cannot start a process ({error}).") from error
                stack.callback(_end, process)
        return _outcome(report, method.level, seconds)


def _temporary_file(stack: contextlib.ExitStack, data: bytes) -> int:
    """The descriptor of a file without a name that holds `data`."""
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file.fileno()


def _start(
    command: list[str], folder: str, descriptors: list[int], home: str
) -> subprocess.Popen[bytes]:
    """Start the program that the first descriptor holds."""
    environment = {
        "PATH": os.defpath,
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
    }
    # Not -I, which would ignore the fixed hash seed: the order of sets must not decide a test.
    program = [interpreter(), "-S", "-s", "-B", "-c", _START, str(descriptors[0])]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and our own script
        [*command, *program],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    # Before the process is waited for: until then its group's number cannot be another's.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _folder(method: Method) -> Iterator[str]:
    """The working directory of a run, emptied whatever is in it."""
    if method.level == "bubblewrap":
        yield "/"
        return
    folder = tempfile.mkdtemp(prefix="cospec-")
    try:
        if method.user is not None:
            os.chown(folder, method.user, method.user)
        yield folder
    finally:
        # Python's own removal recurses, which a thousand nested folders break.
        for command in (["chmod", "-R", "u+rwx", "--"], ["rm", "-rf", "--"]):
            subprocess.run([*command, folder], stderr=subprocess.DEVNULL, check=False)  # noqa: S603


def _outcome(report: int, level: Isolation, seconds: float) -> Outcome:
    """Read the report until the code passed or failed, its process ended or its time is up."""
    received, _ = _read_line(report, b"", _START_SECONDS)
    first, _, rest = received.partition(b"\n")
    if first != b"ready":
        raise BackendError("the processes ended before they were ready")
    received, in_time = _read_line(report, rest, seconds)
    line, whole, _ = received.decode(errors="replace").partition("\n")
    if line == "passed" and whole:
        return Outcome(True, "", level)
    if line.startswith("failed "):
        reason = line.removeprefix("failed ")
    elif not in_time:
        reason = f"took longer than {seconds:g} s"
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
