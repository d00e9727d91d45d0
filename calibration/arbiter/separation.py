"""How well the warm start tells, on tasks that it has not seen, which of the two tokens is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..quality.statistics import wilson_interval
from .config import TrainingConfig
from .network import ArbiterConfig
from .policy import warm_start

FOLDS = 4

Records = Mapping[str, Sequence[dict[str, Any]]]
"""By their kind, such as branches: a record for each task, in the same order of tasks."""


Interval = tuple[float, float]


def separation(
    records: Records, shape: ArbiterConfig, config: TrainingConfig
) -> dict[str, tuple[float, Interval] | None]:
    """Cross-validate the warm start over tasks.

    Returns:
        For each kind of records the area under the ROC curve, over the mismatches that decided between
        right and wrong, and its 95 % interval: 0.5 is chance. None without any of both sorts.
    """
    scores: dict[str, list[float]] = {kind: [] for kind in records}
    wins: dict[str, list[bool]] = {kind: [] for kind in records}
    for fold in range(FOLDS):
        known = [
            record
            for some in records.values()
            for i, record in enumerate(some)
            if i % FOLDS != fold and record["branches"]
        ]
        if not known:
            continue
        network, _ = warm_start(known, shape, config)
        for kind, some in records.items():
            held = [b for record in some[fold::FOLDS] for b in record["branches"]]
            decided = [b for b in held if b["draft"] != b["target"]]
            if decided:
                rows = torch.tensor([b["features"] for b in decided], dtype=torch.float32)
                with torch.no_grad():
                    scores[kind] += network.logits(rows).tolist()
                wins[kind] += [b["draft"] for b in decided]
    return {kind: area(scores[kind], wins[kind]) for kind in records}


def area(scores: Sequence[float], wins: Sequence[bool]) -> tuple[float, Interval] | None:
    """Return how often a win has the higher score than a loss, ties counting half, and its interval.

    The interval takes the area for a share of the rarer sort, which is the most that its variance can
    be (Birnbaum and Klose, 1957).
    """
    won = np.array([s for s, win in zip(scores, wins, strict=True) if win])
    lost = np.array([s for s, win in zip(scores, wins, strict=True) if not win])
    rarer = min(len(won), len(lost))
    if not rarer:
        return None
    above = float((won[:, None] > lost).mean() + (won[:, None] == lost).mean() / 2)
    return above, wilson_interval(above * rarer, rarer)
