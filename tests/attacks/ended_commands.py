"""Commands that are killed, terminated, or run out of disk: what is left must be whole.

Each command runs again and again and is ended: by SIGTERM or SIGKILL at a random moment, by a limit on
the size of its files, or by a small disk that fills up (a tmpfs). Afterwards its output is the old one
or the new one, and nothing else is left behind.

    cd tests && python -m attacks.ended_commands BUNDLE --terms 100 --kills 200 --limits 10 --disks 10
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attacks.children import Child, call
from attacks.ended_jobs import Job, clear_leftovers, jobs

SECONDS = 600.0
DISK_BYTES = 200 << 20
"""Room that an export wants to see before it begins."""
NAMESPACES = 0x10000000 | 0x00020000  # CLONE_NEWUSER and CLONE_NEWNS
ORT_SESSION = ".ses"
"""A file that ONNX Runtime keeps in the folder for temporary files."""
ROOM = {0, 7}
"""Exit codes of a command on a disk that may be too small."""


def start(job: Job, work: Path, most: int | None = None) -> Child:
    """Start a command whose files may have at most `most` bytes; its temporary files go to `work`."""

    def run() -> object:
        tempfile.tempdir = os.environ["TMPDIR"] = str(work / "tmp")
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return job.main(job.arguments(work))

    (work / "tmp").mkdir(exist_ok=True)
    return Child(run)


def verdict(job: Job, work: Path, child: Child, allowed: set[int]) -> str:
    """Return `well`, or what is wrong after a command was ended."""
    said = child.said()
    if "Traceback" in said:
        return f"traceback: {said[max(said.index('Traceback') - 200, 0) :][-1500:]}"
    if child.code not in allowed:
        return f"exit code {child.code}: {said.strip()[-150:]}"
    problem = job.problem(work)
    if problem is not None:
        return f"broken: {problem}"
    left = [path.name for path in work.rglob(".*") if _is_leftover(path)]
    if child.code != -signal.SIGKILL:
        left += [path.name for path in (work / "tmp").iterdir() if path.name != ORT_SESSION]
    return f"left behind: {left}" if left else "well"


def _is_leftover(path: Path) -> bool:
    return path.parent.name != "tmp" and not path.name.endswith(".lock")


@contextmanager
def prepared(job: Job) -> Iterator[Path]:
    """Yield a folder with what has to be there before a command runs."""
    with tempfile.TemporaryDirectory() as folder:
        job.prepare(Path(folder))
        yield Path(folder)


def wait_for_writing(work: Path, child: Child) -> None:
    """Wait until a command has begun a bundle, or has ended."""
    while child.wait() is None and not any(".staging-" in path.name for path in work.iterdir()):
        time.sleep(0.002)


def end_by_signal(job: Job, number: int, at: float, *, writing: bool = False) -> str:
    """Run a command, end it, and return the verdict.

    Args:
        job: the command.
        number: of the signal.
        at: seconds after which it is sent.
        writing: count them from the moment at which the command begins to write.
    """
    with prepared(job) as work:
        child = start(job, work)
        if writing:
            wait_for_writing(work, child)
        if child.wait(at) is None:
            child.send(number)
            if child.wait(SECONDS) is None:
                child.kill()
                return "did not end"
        if number == signal.SIGKILL:
            child.kill()
            if job.writes_bundle:
                clear_leftovers(work)
            else:
                child.said()  # closes its pipe
                child = start(job, work)
                child.wait(SECONDS)
        # Before the command has begun, Python itself dies of a signal.
        allowed = {0, -signal.SIGKILL} if number == signal.SIGKILL else {0, 143, -signal.SIGTERM}
        return verdict(job, work, child, allowed)


def end_by_limit(job: Job, size: int) -> str:
    """Run a command whose files may have `size` bytes at most, and return the verdict."""
    with prepared(job) as work:
        child = start(job, work, size)
        child.wait(SECONDS)
        return verdict(job, work, child, ROOM)


def end_by_full_disk(job: Job, size: int) -> str:
    """Run a command on a disk that has `size` free bytes from the moment it writes."""

    def run() -> None:
        with _disk() as folder:
            print(_on_disk(job, folder, size))

    code, said = call(run, seconds=SECONDS)
    return said.strip().splitlines()[-1] if code == 0 else f"not run: {said[-300:]}"


def _on_disk(job: Job, work: Path, size: int) -> str:
    job.prepare(work)
    child = start(job, work)
    if job.writes_bundle:
        wait_for_writing(work, child)
    filling = work / "tmp.filling"
    with filling.open("wb") as stream:
        while (free := shutil.disk_usage(work).free) > size:
            with suppress(OSError):  # the command wrote something meanwhile
                os.posix_fallocate(stream.fileno(), filling.stat().st_size, free - size)
    child.wait(SECONDS)
    filling.unlink()
    return verdict(job, work, child, ROOM)


@contextmanager
def _disk() -> Iterator[Path]:
    """Yield an empty disk that only this process sees; needs namespaces of users."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NAMESPACES):
        raise OSError(ctypes.get_errno(), "no namespaces of users here")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
        subprocess.run(mount, check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def can_mount() -> bool:
    """Say whether this machine lets its users mount disks of their own."""

    def try_it() -> None:
        with _disk():
            pass

    return call(try_it)[0] == 0


def sizes(job: Job) -> tuple[float, list[int], str]:
    """Run a command to its end; return its seconds, the sizes of what it wrote, and the verdict."""
    with prepared(job) as work:
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
        started = time.monotonic()
        child = start(job, work)
        child.wait(SECONDS)
        seconds = time.monotonic() - started
        stats = [(path, path.stat()) for path in work.rglob("*") if path.is_file()]
        written = [stat for path, stat in stats if before.get(path) != stat.st_mtime_ns]
        written.sort(key=lambda stat: stat.st_mtime_ns)
        return seconds, [stat.st_size for stat in written], verdict(job, work, child, {0})


def full_disks(written: list[int], count: int, draw: random.Random) -> list[int]:
    """Return free sizes of a disk: each file fails at its first page, in its middle, at its last."""
    levels, total = [], 0
    for size in written:
        levels += [total, total + size // 2, total + size - 1]
        total += size
    draw.shuffle(levels)
    return [level for level in levels if level > 0][:count]


def limits(written: list[int], count: int, draw: random.Random) -> list[int]:
    """Return limits of file sizes: each file is too large by one byte, or by half."""
    found = [size - 1 for size in written] + [size // 2 for size in written]
    draw.shuffle(found)
    return [size for size in found if size > 0][:count]


def main() -> int:
    """Run the campaign and print a table; return 1 if something was not well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--terms", type=int, default=100, help="of all commands together")
    parser.add_argument("--kills", type=int, default=200, help="of all commands together")
    parser.add_argument("--limits", type=int, default=10, help="of each command")
    parser.add_argument("--disks", type=int, default=10, help="of each command")
    parser.add_argument("--only", help="names of commands, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    found: Counter[tuple[str, str, str]] = Counter()

    def note(how: str, name: str, result: str) -> None:
        found[how, name, result] += 1
        if result != "well":
            print(how, name, result, flush=True)

    with tempfile.TemporaryDirectory() as sources:
        known = jobs(given.bundle.resolve(), Path(sources))
        names = given.only.split(",") if given.only else list(known)
        whole = {}
        for name in names:
            seconds, written, result = sizes(known[name])
            print(f"{name}: {seconds:.1f} s, {sum(written)} bytes", flush=True)
            note("not at all", name, result)
            whole[name] = seconds, written
        for number, count in ((signal.SIGTERM, given.terms), (signal.SIGKILL, given.kills)):
            for turn in range(count):
                name = names[turn % len(names)]
                at = draw.uniform(0, whole[name][0])
                writing = turn // len(names) % 2 == 1
                result = end_by_signal(
                    known[name], number, at / 2 if writing else at, writing=writing
                )
                note(number.name, name, result)
        disks = given.disks if can_mount() else 0
        if disks < given.disks:
            print("disks that fill up: SKIPPED, users may not mount any here", flush=True)
        for name in names:
            for size in limits(whole[name][1], given.limits, draw):
                note("limit", name, end_by_limit(known[name], size))
            for size in full_disks(whole[name][1], disks, draw):
                note("disk", name, end_by_full_disk(known[name], size))
    for key, count in sorted(found.items()):
        print(f"{count:>6}", *key)
    failed = sum(count for (_, _, result), count in found.items() if result != "well")
    print(f"tried {found.total()}, failed {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
