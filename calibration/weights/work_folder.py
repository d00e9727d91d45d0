"""What an unfinished job has made so far, in a folder that survives a kill.

Beside an output `models/tiny`:
  models/tiny.work/journal.jsonl          finished parts, the request first
  models/tiny.work/target-int4/           a graph that has passed the gate
  models/.tiny.work.lock                  held while a job uses the folder
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ...errors import CospecError, GateError, ResourceError, UsageError
from ...export.decoder_export import Exported
from ...runtime.bundle.files import sha256_of
from ...runtime.bundle.json_input import convert
from ...runtime.bundle.manifest import ModelEntry
from ...runtime.bundle.writer import acquire_lock
from ..journal import Journal

REQUEST = "request"


@contextmanager
def work_folder(path: Path, request: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Hold the folder of one job; without `remove` it stays.

    Args:
        path: of the folder.
        request: all that the finished parts depend on, as JSON values by name.

    Raises:
        UsageError: the folder is that of another request; names what differs.
        ResourceError: another process uses it, or it is no such folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = acquire_lock(path)
    try:
        yield WorkFolder(path, _journal(path, dict(request)))
    finally:
        lock.release()


def _journal(path: Path, request: dict[str, Any]) -> Journal:
    """Open the journal of a folder for a request; errors as in `work_folder`."""
    file = path / "journal.jsonl"
    if path.exists() and not file.is_file() and any(path.iterdir()):
        raise ResourceError(
            f"{path}: exists and holds no unfinished job, so it will not be used",
            hint="Choose another --output, or move what is there.",
        )
    journal = Journal(file)
    before = journal.done.get(REQUEST)
    if before is None:
        journal.write(REQUEST, request)
    elif before != request:
        names = [name for name in request if before.get(name) != request[name]]
        raise UsageError(
            f"{path} holds an unfinished job with another {', '.join(names)}",
            hint="Repeat its command to continue it, delete the folder to give it up, or choose "
            "another --output.",
        )
    return journal


class WorkFolder:
    """What a job has finished.

    Attributes:
        path: of the folder.
        journal: of finished parts.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self.journal = journal
        self._whole: dict[str, Exported] = {}

    def graph(self, key: str) -> Path:
        """Return the path of an exported graph."""
        return self.path / key / "model.onnx"

    def exported(self, key: str, export: Callable[[Path], Exported]) -> Exported:
        """Return a graph that has passed the gate; an earlier run may have exported it.

        Args:
            key: of the graph.
            export: writes the graph at a path.

        Raises:
            CospecError: what `export` raises, and GateError where it was refused before.
        """
        if key in self._whole:
            return self._whole[key]
        graph, record = self.graph(key), self.journal.done.get(f"export {key}")
        if record is not None and record["refused"] is not None:
            raise GateError(record["refused"])
        if record is None or _files(graph.parent) != record["files"]:
            record = self._export(key, export)
        entry = convert(record["entry"], ModelEntry, error=CospecError)
        self._whole[key] = Exported(entry, record["parity"], record["quantised"])
        return self._whole[key]

    def _export(self, key: str, export: Callable[[Path], Exported]) -> Any:
        folder = self.graph(key).parent
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            made = export(self.graph(key))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, GateError):
                self.journal.write(f"export {key}", {"refused": error.message})
            raise
        record = {
            "refused": None,
            "entry": msgspec.to_builtins(made.entry),
            "parity": made.parity,
            "quantised": made.quantised,
            "files": _files(folder),
        }
        self.journal.write(f"export {key}", record)
        return record

    def discard(self, key: str) -> None:
        """Delete the files of a graph that will not be used."""
        self._whole.pop(key, None)
        shutil.rmtree(self.path / key, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder: the job is done."""
        shutil.rmtree(self.path)


def _files(folder: Path) -> dict[str, str]:
    """Return the hashes of the files of a folder, empty where there is none."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.name: sha256_of(file) for file in files}
