"""The finished parts of a long job, in a file that survives a kill: the next run continues from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Journal:
    """Finished parts of a job, one JSON line each. Use a journal in one process at a time.

    Args:
        path: the file, made with the first part; None keeps the parts in memory only.

    Attributes:
        done: record of every finished part, by key. A line that a kill cut in the middle is not
            counted, so that part runs again.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.done: dict[str, Any] = {}
        data = path.read_bytes() if path is not None and path.is_file() else b""
        self._ends_in_a_cut_line = data[-1:] not in (b"", b"\n")
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                self.done[str(entry["key"])] = entry["record"]
            except (ValueError, KeyError, TypeError):
                continue

    def write(self, key: str, record: Any) -> None:
        """Add a finished part and append it to the file; `record` is a JSON value."""
        self.done[key] = record
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "record": record}) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + line if self._ends_in_a_cut_line else line)
        self._ends_in_a_cut_line = False

    def clear(self) -> None:
        """Forget all parts and delete the file."""
        self.done.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def digest(facts: str) -> str:
    """Return 16 hexadecimal digits that identify `facts`: part of a key or of a file name."""
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
