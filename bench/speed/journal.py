"""Finished parts of a long measurement, which outlive its being stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...runtime.bundle.files import write_whole


class Journal:
    """Keeps each part when it is finished; a run that is stopped goes on with the next one.

    Args:
        path: of the file; `finish` removes it.
        report: called with what is taken over, if something is.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self._path = path
        self._parts: dict[str, Any] = {}
        if path.exists():
            self._parts = json.loads(path.read_text(encoding="utf-8"))
            report(
                f"going on with a measurement that was stopped: {', '.join(self._parts)} from {path}"
            )

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a part, which is measured unless it is there; its value is one of JSON's."""
        if name not in self._parts:
            self._parts[name] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._parts).encode("utf-8"))
        return self._parts[name]

    def finish(self) -> None:
        """Forget all parts: the next run measures anew."""
        self._path.unlink(missing_ok=True)
