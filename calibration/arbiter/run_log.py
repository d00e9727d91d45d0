"""The log of a training run: its figures as JSON, and a picture of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runtime.bundle.durable import write_whole
from ..quality.quality_report import require_matplotlib
from .config import TrainingConfig

PANELS = (
    ("reward", "reward"),
    ("accuracy", "share of right answers"),
    ("tokens_per_pass", "tokens per target pass"),
    ("tokens_per_answer", "tokens per answer"),  # acceptance that rises with length is no gain
    ("keep_rate", "share of mismatches kept"),
    ("kl", "KL to the warm start, nats"),
)
"""Figures of an update that are drawn, and their titles."""


class RunLog:
    """Figures of a training run by stage, in one JSON file that is complete after each stage.

    Args:
        path: the JSON file. The figures of a run with the same configuration, or with fewer updates,
            are kept, so a job that continues has one log.
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


def plot_training(updates: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the figures of every update, from `RunLog.updates`, as one panel each.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require_matplotlib()(figsize=(10, 6), layout="constrained")  # no pyplot, so no display
    steps = range(1, len(updates) + 1)
    for axes, (name, label) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        axes.plot(steps, [update[name] for update in updates], marker=".")
        axes.set_xlabel("update")
        axes.set_title(label, fontsize=10)
    figure.savefig(path, dpi=120)


def _same_run(before: Any, now: dict[str, Any]) -> bool:
    return isinstance(before, dict) and before | {"steps": None} == now | {"steps": None}
