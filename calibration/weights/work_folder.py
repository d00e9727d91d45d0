"""What an unfinished job has made so far, in a folder that survives a kill.

Beside an output `models/tiny`:
  models/tiny.work/journal.jsonl          finished parts, the request first
  models/tiny.work/target-int4/           a graph that has passed the gate
  models/.tiny.work.lock                  held while a job uses the folder
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
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


class WorkFolder:
    """A context manager that holds the folder of one job; without `remove` it stays.

    Args:
        path: of the folder.
        request: all that the finished parts depend on, as JSON values by name.

    Attributes:
        path: of the folder.
        journal: of finished parts.

    Raises (on entering):
        UsageError: the folder is that of another request; names what differs.
        ResourceError: another process uses it, or it is no such folder.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        self.path = path
        self.journal = Journal(None)
        self._request = dict(request)
        self._whole: dict[str, Exported] = {}

    def __enter__(self) -> WorkFolder:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = acquire_lock(self.path)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def _open(self) -> None:
        file = self.path / "journal.jsonl"
        if self.path.exists() and not file.is_file() and any(self.path.iterdir()):
            raise ResourceError(
                f"{self.path}: exists and holds no unfinished job, so it will not be used",
                hint="Choose another --output, or move what is there.",
            )
        self.journal = Journal(file)
        before = self.journal.done.get(REQUEST)
        if before is None:
            self.journal.write(REQUEST, self._request)
        elif before != self._request:
            names = [name for name in self._request if before.get(name) != self._request[name]]
            raise UsageError(
                f"{self.path} holds an unfinished job with another {', '.join(names)}",
                hint="Repeat its command to continue it, delete the folder to give it up, or choose "
                "another --output.",
            )

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
