"""The log of a training run: every figure, as one JSON file that is whole at any time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runtime.bundle.durable import write_whole
from .config import TrainingConfig


class RunLog:
    """Figures by stage, on disk after each.

    Args:
        path: the JSON file. What a run with the same configuration, or with fewer updates, left there
            is kept, so that a job that goes on has one log.
        config: written at the top.
    """

    def __init__(self, path: Path, config: TrainingConfig) -> None:
        self._path = path
        self.entries: dict[str, Any] = {"config": asdict(config)}
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if isinstance(before, dict) and _same_run(before.get("config"), self.entries["config"]):
            self.entries = before | self.entries

    def add(self, name: str, figures: Mapping[str, Any]) -> None:
        """Add a stage's figures and write the file."""
        self.entries[name] = dict(figures)
        write_whole(self._path, (json.dumps(self.entries, indent=1) + "\n").encode())

    def updates(self) -> list[dict[str, float]]:
        """Return the figures of the updates by gradient, in order."""
        steps = sum(name.startswith("step ") for name in self.entries)
        return [self.entries[f"step {i}"] for i in range(steps)]


def _same_run(before: Any, now: dict[str, Any]) -> bool:
    return isinstance(before, dict) and before | {"steps": None} == now | {"steps": None}
