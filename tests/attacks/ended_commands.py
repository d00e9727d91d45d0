"""Commands that are killed, terminated, or run out of disk: what is left must be whole.

Each command runs again and again and is ended: by SIGTERM or SIGKILL at a random moment, by a limit on
the size of its files, or by a small disk that fills up (a tmpfs, where this user may mount one).
Afterwards its output is the old one or the new one, and nothing else is left behind.

    python -m tests.attacks.ended_commands --engine-dir models/tiny --terms 100 --kills 200 --limits 20
"""

from __future__ import annotations

import argparse
import json
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cospec.errors import BundleError
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.bundle.writer import BundleWriter

PROMPTS = 400
ARBITER = Path(__file__).parents[2] / "models" / "tiny_pair" / "arbiter"


@dataclass(frozen=True)
class Job:
    """A command that writes something.

    Attributes:
        name: of the command.
        arguments: of Python, for a work folder in which the command writes.
        prepare: makes what has to be there before.
        problem: says what is wrong with the output, None if nothing is.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    prepare: Callable[[Path], object]
    problem: Callable[[Path], str | None]


def jobs(bundle: Path) -> list[Job]:
    """Return the commands that are ended."""

    def old_bundle(work: Path) -> None:
        shutil.copytree(bundle, work / "out")

    def is_bundle(work: Path) -> str | None:
        try:
            Bundle.open(work / "out")
        except BundleError as error:
            return error.message
        return None

    def prompts(work: Path) -> None:
        lines = [
            json.dumps({"prompt": f"What is {n} + 3?", "max_tokens": 4}) for n in range(PROMPTS)
        ]
        (work / "in.jsonl").write_text("\n".join(lines) + "\n")

    def answers(work: Path) -> str | None:
        path = work / "out.jsonl"
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        ids = [json.loads(line)["id"] for line in whole]
        return None if ids == list(range(1, len(ids) + 1)) else "the answers are not in order"

    def command(module: str) -> tuple[str, str]:
        return "-c", f"from {module} import main; main()"

    export = [*command("cospec.export.cli"), "--target", "tiny", "--force", "--output"]
    weights = [
        *command("cospec.calibration.cli"),
        *("weights", "--engine-dir", str(bundle), "--force"),
        *("--formats", "fp32,int8", "--tasks", "tiny:validation", "--items", "4"),
        *("--text-tokens", "64", "--strict-prompts", "1", "--output"),
    ]
    batch = [*command("cospec.runtime.cli.run"), "--engine-dir", str(bundle)]
    certify = [
        *command("cospec.calibration.cli"),
        *("certify", "--tasks", "tiny:validation", "--items", "8"),
        *("--processes", "1"),
    ]
    return [
        Job("export", lambda work: [*export, str(work / "out")], old_bundle, is_bundle),
        Job("weights", lambda work: [*weights, str(work / "out")], old_bundle, is_bundle),
        Job(
            "certify",
            lambda work: [
                *certify,
                *("--arbiter", str(work / "arbiter"), "--engine-dir", str(work / "out")),
            ],
            lambda work: (old_bundle(work), shutil.copytree(ARBITER, work / "arbiter")),
            is_bundle,
        ),
        Job(
            "batch",
            lambda work: [
                *batch,
                *("--batch", str(work / "in.jsonl"), "--output", str(work / "out.jsonl")),
            ],
            prompts,
            answers,
        ),
    ]


def verdict(job: Job, work: Path, code: int, stderr: str, allowed: set[int]) -> str:
    """Return `well`, or what is wrong after a command was ended."""
    if "Traceback" in stderr:
        return f"traceback: {stderr.strip().splitlines()[-1][:150]}"
    if code not in allowed:
        return f"exit code {code}: {stderr.strip()[-150:]}"
    problem = job.problem(work)
    if problem is not None:
        return f"broken: {problem}"
    left = [
        path.name for path in work.iterdir() if ".staging-" in path.name or ".old-" in path.name
    ]
    return f"left behind: {left}" if left else "well"


def run(job: Job, work: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        [sys.executable, *job.arguments(work)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
        start_new_session=True,
    )


def end_by_signal(job: Job, number: int, at: float) -> str:
    """Run a command, end it after `at` seconds, and return the verdict."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job.prepare(work)
        process = run(job, work)
        try:
            _, stderr = process.communicate(timeout=at)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, stderr = process.communicate(timeout=120)
        if number == signal.SIGKILL:
            os.killpg(process.pid, signal.SIGKILL) if _lives(process.pid) else None
            if job.name != "batch":  # the next writer of any name in that folder clears up
                with BundleWriter(work / "other"):
                    pass
        # Before the command has begun, Python itself dies of a signal.
        allowed = {0, -9} if number == signal.SIGKILL else {0, 143, -15}
        return verdict(job, work, process.returncode, stderr, allowed)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def end_by_limit(job: Job, size: int) -> str:
    """Run a command whose files may have `size` bytes at most, and return the verdict."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job.prepare(work)
        process = run(job, work, limit)
        _, stderr = process.communicate(timeout=600)
        return verdict(job, work, process.returncode, stderr, {0, 7})


def end_by_full_disk(job: Job, size: int) -> str:
    """Run a command on a disk of `size` free bytes, and return the verdict."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m"),
                *("tests.attacks.ended_commands", "--on-disk", folder, job.name, str(size)),
                *("--engine-dir", os.environ["ATTACKED_BUNDLE"]),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return done.stdout.strip() or f"not run: {done.stderr.strip()[-150:]}"


def on_disk(folder: Path, job: Job, size: int) -> str:
    """Mount a disk at `folder`, fill it but for `size` bytes, and run a command there."""
    whole = (64 << 20) + size
    mount = ["mount", "-t", "tmpfs", "-o", f"size={whole}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    job.prepare(folder)
    free = shutil.disk_usage(folder).free
    (folder / "filling").write_bytes(bytes(max(0, free - size)))
    process = run(job, folder)
    _, stderr = process.communicate(timeout=600)
    (folder / "filling").unlink()
    return verdict(job, folder, process.returncode, stderr, {0, 7})


def main() -> int:
    """Run the campaign and print a table; return 1 if something was not well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-dir", type=Path, required=True)
    parser.add_argument("--terms", type=int, default=100)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--on-disk", nargs=3, metavar=("FOLDER", "JOB", "SIZE"))
    given = parser.parse_args()
    bundle = given.engine_dir.resolve()
    known = {job.name: job for job in jobs(bundle)}
    if given.on_disk is not None:
        folder, name, size = given.on_disk
        print(on_disk(Path(folder), known[name], int(size)))
        return 0
    os.environ["ATTACKED_BUNDLE"] = str(bundle)
    draw = random.Random(0)
    found: Counter[tuple[str, str, str]] = Counter()

    def note(how: str, job: Job, result: str) -> None:
        found[how, job.name, result] += 1
        if result != "well":
            print(how, job.name, result, flush=True)

    seconds = {}
    for job in known.values():
        started = time.monotonic()
        note("not at all", job, end_by_signal(job, signal.SIGTERM, 900))
        seconds[job.name] = time.monotonic() - started
    names = list(known)
    for number, count in ((signal.SIGTERM, given.terms), (signal.SIGKILL, given.kills)):
        for turn in range(count):
            job = known[names[turn % len(names)]]
            at = draw.uniform(0.5, seconds[job.name])
            note(number.name, job, end_by_signal(job, number, at))
    for how, count, end in (
        ("limit", given.limits, end_by_limit),
        ("disk", given.disks, end_by_full_disk),
    ):
        for turn in range(count):
            job = known[names[turn % len(names)]]
            note(how, job, end(job, int(2 ** draw.uniform(10, 23.5))))
    for key, count in sorted(found.items()):
        print(count, *key)
    return 0 if {result for _, _, result in found} == {"well"} else 1


if __name__ == "__main__":
    sys.exit(main())
