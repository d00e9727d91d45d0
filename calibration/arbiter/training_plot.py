"""The picture of a training run: what each update's trajectories earned, and how fast they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..quality.accuracy_plot import require_matplotlib

PANELS = (
    ("reward", "reward"),
    ("accuracy", "share of right answers"),
    ("tokens_per_pass", "tokens per target pass"),
    ("tokens_per_answer", "tokens per answer"),  # acceptance that rises with length is no gain
    ("keep_rate", "share of mismatches kept"),
    ("kl", "KL to the warm start, nats"),
)


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
