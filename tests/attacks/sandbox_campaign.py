"""Attack the sandbox of generated code with all cheats and escapes, and try all honest solutions.

    cd tests && ../.venv/bin/python -m attacks.sandbox_campaign [--level bubblewrap|limits]

Prints a table of tried and failed, and ends with 1 if a cheat passed, an escape got out or an honest
solution failed. At the level "limits" escapes are not tried: nothing is promised about them there.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attacks import sandbox_cheats, sandbox_escapes, sandbox_honest, sandbox_intrusions

from cospec.calibration.tasks import sandbox
from cospec.calibration.tasks.sandbox import LEVELS, run_python

CHEATS = {
    "objects": sandbox_cheats.OBJECTS,
    "replaced": sandbox_cheats.REPLACED,
    "reached": sandbox_intrusions.REACHED,
    "ended": sandbox_intrusions.ENDED,
}
ESCAPES = {
    "writes": sandbox_escapes.WRITES,
    "processes": sandbox_escapes.PROCESSES,
    "network": sandbox_escapes.NETWORK,
    "resources": sandbox_escapes.RESOURCES,
}
HONEST = {
    "values": sandbox_honest.VALUES,
    "calls": sandbox_honest.CALLS,
    "objects": sandbox_honest.OBJECTS,
}
SECONDS = 3.0
_MARK = "import marshal, sys; stream"


def passed_cheats(cases: Sequence[tuple[str, str, str]], workers: int = 2) -> list[str]:
    """The names of the cheats that passed their tests."""
    return _names(cases, workers, wanted=True)


def failed_honest(cases: Sequence[tuple[str, str, str]], workers: int = 2) -> list[str]:
    """The names of the honest solutions that failed, with the reason."""
    return _names(cases, workers, wanted=False)


def _names(cases: Sequence[tuple[str, str, str]], workers: int, *, wanted: bool) -> list[str]:
    seconds = SECONDS if wanted else 60.0
    with ThreadPoolExecutor(workers) as pool:
        done = list(pool.map(lambda case: run_python(case[1:], seconds=seconds), cases))
    return [
        f"{case[0]}: {outcome.reason}"
        for case, outcome in zip(cases, done, strict=True)
        if outcome.ok is wanted
    ]


def escaped(cases: Sequence[tuple[str, str]]) -> list[str]:
    """The names of the escapes that got out, or that the host saw something of."""
    found = []
    with _host() as host:
        prelude = "".join(f"{name} = {value!r}\n" for name, value in host.names.items())
        for name, code in cases:
            if "syscall(" in code and platform.machine() != "x86_64":
                continue  # the numbers are those of x86-64
            outcome = run_python(prelude + code, seconds=SECONDS)
            trace = host.trace()
            if outcome.ok or trace:
                found.append(f"{name}: {trace or 'ran to its end'}")
    for _ in range(20):  # the kernel ends the processes of a namespace soon after its first
        if not any(_MARK in line for line in _command_lines()):
            return found
        time.sleep(0.1)
    found.append("a process outlived its run")
    return found


class _Host:
    """What escapes aim at, and whether they hit it."""

    def __init__(
        self, folder: Path, server: socket.socket, process: subprocess.Popen[bytes]
    ) -> None:
        self._folder, self._server, self._process = folder, server, process
        port = server.getsockname()[1]
        self.names: dict[str, Any] = {"folder": str(folder), "port": port, "pid": process.pid}
        self.names["secret"] = process.args[-1]  # type: ignore[index]
        self.names["memory"] = 2 * sandbox.DEFAULT_MEMORY_BYTES
        self.names["disk"] = 128 << 20

    def trace(self) -> str:
        """What an escape left, or an empty text."""
        if [path.name for path in self._folder.iterdir()] != ["victim"]:
            return "changed the folder"
        victim = self._folder / "victim"
        if victim.read_text() != "kept" or victim.stat().st_mode & 0o777 != 0o666:
            return "changed the file"
        if self._process.poll() is not None:
            return "ended a process"
        try:
            self._server.accept()
        except BlockingIOError:
            return ""
        return "made a connection"


@contextmanager
def _host() -> Iterator[_Host]:
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "victim").write_text("kept")
        (folder / "victim").chmod(0o666)
        os.environ["COSPEC_SECRET"] = secret = secrets.token_hex(8)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)", secret])
        try:
            yield _Host(folder, server, process)
        finally:
            process.kill()
            process.wait()
            del os.environ["COSPEC_SECRET"]


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue


@contextmanager
def only(level: str) -> Iterator[None]:
    """Have the sandbox use this level, whatever else there is."""
    methods = sandbox.find_methods
    found = [method for method in methods() if method.level == level]
    sandbox.find_methods = lambda: iter(found)
    sandbox._method.cache_clear()
    try:
        yield
    finally:
        sandbox.find_methods = methods
        sandbox._method.cache_clear()


def main() -> int:
    """Run everything at one level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", choices=LEVELS, default=LEVELS[0])
    level = parser.parse_args().level
    rows: list[tuple[str, int, list[str]]] = []
    with only(level):
        for kind, cases in CHEATS.items():
            rows.append((f"cheats: {kind}", len(cases), passed_cheats(cases)))
        if level == LEVELS[0]:
            for kind, escapes in ESCAPES.items():
                rows.append((f"escapes: {kind}", len(escapes), escaped(escapes)))
        for kind, cases in HONEST.items():
            rows.append((f"honest: {kind}", len(cases), failed_honest(cases)))
    print(f"{'isolation: ' + level:<24}{'tried':>8}{'failed':>8}")
    for name, tried, failed in rows:
        print(f"{name:<24}{tried:>8}{len(failed):>8}")
        for line in failed:
            print(f"    {line}")
    bad = sum(len(failed) for _, _, failed in rows)
    print(f"tried {sum(tried for _, tried, _ in rows)}, failed {bad}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
