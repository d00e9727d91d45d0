"""Playing many tasks in several processes, with results on disk as they come.

Each line of a journal is one finished item. A job that was killed reads its journal and plays only what
is missing; a line that was cut in the middle counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import BackendError

_state: Any = None


class Workers:
    """Processes that keep their engines between jobs.

    Args:
        processes: how many; 1 works in this process.
        setup: makes the state that every job of a process gets; picklable.
    """

    def __init__(self, processes: int, setup: Callable[[], Any]) -> None:
        self._own = setup() if processes == 1 else None
        # Spawned, because a fork copies threads of torch and ONNX Runtime in an undefined state.
        context = multiprocessing.get_context("spawn")
        self._pool = (
            None if processes == 1 else ProcessPoolExecutor(processes, context, _start, (setup,))
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, job: Callable[[Any, Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield `job(state, item)` of each item, in order, as they are done.

        Raises:
            BackendError: a process died.
        """
        if self._pool is None:
            yield from (job(self._own, item) for item in items)
            return
        try:
            yield from self._pool.map(_Call(job), items, chunksize=2)
        except BrokenProcessPool as error:
            raise BackendError(
                "a process that plays tasks died; its own message is above",
                hint="if memory ran out, use fewer --processes; the same command goes on where it was",
            ) from error


def digest(facts: str) -> str:
    """Return what stands for `facts` in the key of a journal's entry: 16 hexadecimal digits."""
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


class Journal:
    """A file of finished items; None as path keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """Return what is finished: key -> record."""
        if self._path is None or not self._path.is_file():
            return {}
        done = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                done[str(entry["key"])] = entry["record"]
            except (ValueError, KeyError, TypeError):
                continue  # cut in the middle by a kill: played again
        return done

    def clear(self) -> None:
        """Delete the file: what it held is no longer needed."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @contextmanager
    def appending(self) -> Iterator[Callable[[str, Any], None]]:
        """Yield a function that writes one finished item, flushed line by line."""
        if self._path is None:
            yield lambda key, record: None
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            if not whole:
                file.write("\n")  # end a line that a kill has cut

            def write(key: str, record: Any) -> None:
                file.write(json.dumps({"key": key, "record": record}) + "\n")
                file.flush()

            yield write


def play_all(
    workers: Workers,
    job: Callable[[Any, Any], Any],
    items: Sequence[tuple[str, Any]],
    journal: Journal,
    label: str,
    describe: Callable[[Any], str] = lambda record: "",
) -> list[Any]:
    """Apply `job` to every (key, item) that the journal lacks; return all records in order."""
    from tqdm import tqdm

    done = journal.read()
    missing = [(key, item) for key, item in items if key not in done]
    results = workers.map(job, [item for _, item in missing])
    bar = tqdm(
        zip(missing, results, strict=True),
        total=len(items),
        initial=len(items) - len(missing),
        desc=label,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    with journal.appending() as write:
        for (key, _), record in bar:
            done[key] = record
            write(key, record)
            bar.set_postfix_str(describe(record), refresh=False)
    return [done[key] for key, _ in items]


class _Call:
    """A picklable call of a job with the process's state."""

    def __init__(self, job: Callable[[Any, Any], Any]) -> None:
        self._job = job

    def __call__(self, item: Any) -> Any:
        return self._job(_state, item)


def _start(setup: Callable[[], Any]) -> None:
    parent = os.getppid()

    def end_with(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the job was killed: nobody waits for this process's results any more

    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _state
    _state = setup()
