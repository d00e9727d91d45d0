"""Load the tasks that `--tasks` names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from random import Random

from ...errors import UsageError
from .bad_lines import OnBadLine, Report
from .item import Task
from .jsonl import read_tasks
from .loaders import BENCHMARKS, load_benchmark
from .tiny import SPLITS, tiny_tasks

TINY_ITEMS = 1000
"""Default number of the tiny pair's generated tasks."""

_TINY = "tiny"
_FORMS = (
    "Give a task file (JSONL), tiny:test (or train, validation), NAME:FILE or NAME:SPLIT of a "
    f"benchmark, or NAME alone for its test split from the hub. The names: {', '.join(BENCHMARKS)}."
)


def resolve_tasks(
    spec: str,
    *,
    items: int | None = None,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    on_bad_line: OnBadLine = "stop",
    report: Report | None = None,
) -> list[Task]:
    """The tasks that a specification names.

    | specification | tasks |
    |---|---|
    | PATH | a task file |
    | tiny:SPLIT | generated ones, drawn by the seed |
    | gsm8k:PATH, humaneval:PATH, ... | a benchmark's local file |
    | gsm8k:SPLIT, gsm8k | a benchmark from the hub: that split, or "test" |

    Args:
        spec: one of the above.
        items: number of tasks, drawn by a shuffle with `seed`; all if there are fewer. None takes all
            in the order of the file (of the tiny tasks, `TINY_ITEMS`).
        seed: seed of the shuffle and of the tiny tasks.
        kinds: only tasks of these kinds; None takes all.
        on_bad_line: "stop" or "skip", as for `read_tasks`.
        report: called with each `BadLine` that is skipped. Default: a Python warning.

    Raises:
        UsageError: nothing of that name, a file that cannot be used, `items` below 1, or no task
            of these kinds.
    """
    if items is not None and items < 1:
        raise UsageError(f"{items} items; at least 1 is needed")
    name, colon, rest = spec.partition(":")
    if name == _TINY and not (not colon and Path(spec).exists()):
        return _tiny(rest, items, seed, kinds)
    if name in BENCHMARKS and (colon or not Path(spec).exists()):
        tasks = _benchmark(name, rest, on_bad_line, report)
    else:
        tasks = _file(spec, on_bad_line, report)
    if kinds is not None:
        tasks = _of_kinds(tasks, kinds, spec)
    if items is None:
        return tasks
    Random(seed).shuffle(tasks)  # noqa: S311 - not a secret
    return tasks[:items]


def label_of(spec: str) -> str:
    """Return a specification as a certificate names it: of a path the last part, as bundles travel."""
    name, _, rest = spec.partition(":")
    if name == _TINY or name in BENCHMARKS:
        return f"{name}:{Path(rest).name}" if rest else spec
    return Path(spec).name


def _tiny(split: str, items: int | None, seed: int, kinds: Sequence[str] | None) -> list[Task]:
    for known in SPLITS:
        if split == known:
            return tiny_tasks(known, items or TINY_ITEMS, seed, kinds)
    raise UsageError(
        f"'tiny:{split}' names no tasks.", hint=", ".join(f"tiny:{known}" for known in SPLITS)
    )


def _benchmark(name: str, rest: str, on_bad_line: OnBadLine, report: Report | None) -> list[Task]:
    is_split = rest in BENCHMARKS[name].splits and not Path(rest).is_file()
    source, split = (None, rest or None) if is_split or not rest else (rest, None)
    return load_benchmark(name, source, split, on_bad_line=on_bad_line, report=report)


def _file(spec: str, on_bad_line: OnBadLine, report: Report | None) -> list[Task]:
    path = Path(spec).expanduser()
    if not spec.strip() or not path.exists():
        close = difflib.get_close_matches(spec.partition(":")[0], [_TINY, *BENCHMARKS], 1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"{spec!r}: no such task file or source.{meant}", hint=_FORMS)
    return read_tasks(path, on_bad_line=on_bad_line, report=report)


def _of_kinds(tasks: list[Task], kinds: Sequence[str], spec: str) -> list[Task]:
    chosen = [task for task in tasks if task.kind in kinds]
    if not chosen:
        there = sorted({task.kind for task in tasks if task.kind}) or ["none"]
        raise UsageError(
            f"{spec} has no tasks of the kinds {', '.join(kinds)}; its kinds: {', '.join(there)}."
        )
    return chosen
