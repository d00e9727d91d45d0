"""Read and write task files (the form is defined in item.py)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import BundleError, UsageError
from ...runtime.bundle.durable import write_whole
from ...runtime.bundle.files import format_bytes
from ...runtime.bundle.json_input import parse_json_object
from .bad_lines import BadLines, OnBadLine, Report
from .checkers import problem_with
from .item import Task, task_from_row, task_to_row

MAX_LINE_BYTES = 4 << 20
_MAX_DEPTH = 32
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_tasks(
    path: str | Path, *, on_bad_line: OnBadLine = "stop", report: Report | None = None
) -> list[Task]:
    """Read all tasks of a JSONL file, in its order. Blank lines are ignored.

    Args:
        path: the file; UTF-8.
        on_bad_line: "stop" raises at the first bad line; "skip" skips bad lines.
        report: called with each `BadLine` that is skipped. Default: a Python warning.

    Raises:
        UsageError: the file cannot be read or holds no task, or a bad line with "stop"; names the
            file, the line's number and what is wrong.
    """
    path = Path(path)
    bad = BadLines(path, on_bad_line, report)
    tasks: list[Task] = []
    first_line: dict[str, int] = {}
    with opened(path) as stream:
        for number, row in json_rows(stream, bad):
            try:
                task = task_from_row(row)
                problem = problem_with(task)
            except UsageError as error:
                problem = error.message
            else:
                if problem is None and task.id in first_line:
                    problem = f"the id {task.id!a} is that of line {first_line[task.id]} as well"
            if problem is not None:
                bad.found(number, problem)
                continue
            first_line[task.id] = number
            tasks.append(task)
    bad.require_some(len(tasks))
    return tasks


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked where its name ends in .gz.

    Raises:
        UsageError: there is no such file, it cannot be read, or it is not a whole gzip file.
    """
    import gzip
    import zlib

    try:
        # A folder opens on some systems and fails only when it is read: both end up below.
        with path.open("rb") as raw:
            if path.suffix == ".gz":
                with gzip.open(raw) as unpacked:
                    yield unpacked  # type: ignore[misc]  # GzipFile reads like any binary file
            else:
                yield raw
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: damaged or cut short ({error}).") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from None


def json_rows(stream: IO[bytes], bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """The (line number, object) pairs of a JSONL stream; what is no object goes to `bad`."""
    for number, line in _lines(stream):
        if line is None:
            bad.found(number, f"longer than {format_bytes(MAX_LINE_BYTES)}")
            continue
        if not line.strip():
            continue
        try:
            row = parse_json_object(line, max_bytes=MAX_LINE_BYTES, max_depth=_MAX_DEPTH)
        except BundleError as error:
            bad.found(number, error.message)
        else:
            yield number, row


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None stands for one that is too long, which is never held in memory."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES:
            yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield number, None


def write_tasks(tasks: Iterable[Task], path: str | Path) -> None:
    """Write a task file: the whole new one, or the old one stays.

    Raises:
        UsageError: a task that `read_tasks` would refuse; nothing is written.
        ResourceError: the file cannot be written.
    """
    path = Path(path)
    seen: set[str] = set()
    lines = [_line(task, seen) for task in tasks]
    write_whole(path, b"".join(lines))


def _line(task: Task, seen: set[str]) -> bytes:
    row = task_to_row(task)
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        problem = problem_with(task_from_row(row))
    except (TypeError, ValueError, RecursionError, UsageError) as error:
        problem, line = getattr(error, "message", str(error)), b""
    if problem is None and task.id in seen:
        problem = "its id occurs twice"
    if problem is None and len(line) > MAX_LINE_BYTES:
        problem = f"longer than {format_bytes(MAX_LINE_BYTES)}"
    if problem is not None:
        raise UsageError(f"The task {task.id!a} cannot be written: {problem}.")
    seen.add(task.id)
    return line
