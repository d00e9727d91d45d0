"""What would have happened: both continuations of a mismatch, each checked against the gold answer.

A policy can only learn to beat the target from the outcome, never from what the target would say. So
each sampled mismatch is continued twice, behind either token, and the four cells
are kept apart: where only one side leads to a right answer the policy learns accuracy, where both do it
learns which wording is harmless, which is speed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..tasks.checkers import check
from ..tasks.item import Task
from .rollouts import Player

NEVER = 1 - 1e-6
"""A threshold that no score passes, but at which mismatches are still looked at and recorded."""

CELLS = ("both wrong", "only target right", "only draft right", "both right")


@dataclass(frozen=True)
class BranchJob:
    """One task to branch.

    Attributes:
        task: the task.
        branches: mismatches to branch at most.
        weights: the policy's parameters, from `policy.weights_of`.
        threshold: of the policy that plays before and behind the mismatch; NEVER is the target alone.
        seed: chooses the mismatches, together with the task's id.
    """

    task: Task
    branches: int
    weights: dict[str, Any]
    threshold: float
    seed: int


def branch(player: Player, job: BranchJob) -> dict[str, Any]:
    """Play a task, and continue some of its mismatches the other way.

    Returns:
        `correct`: whether the played answer was right; `branches`: per mismatch the `features` and
        the outcomes `draft` and `target` of keeping either token.
    """
    player.use(job.weights)
    prompt = player.session.encode(job.task.prompt)
    base = player.play(prompt, job.threshold, stop=job.task.stop)
    correct = check(job.task, player.text(base.tokens))
    rng = random.Random(f"{job.seed} {job.task.id}")  # noqa: S311 - for sampling, not for secrets
    chosen = rng.sample(base.decisions, min(job.branches, len(base.decisions)))
    branches = []
    for decision in sorted(chosen, key=lambda d: d.position):
        other = decision.chosen if decision.kept else decision.drafted
        begun = [*base.tokens[: decision.position], other]
        played = player.play(prompt, job.threshold, begun=begun, stop=job.task.stop)
        outcome = check(job.task, player.text(played.tokens))
        draft, target = (correct, outcome) if decision.kept else (outcome, correct)
        branches.append(
            {
                "features": [round(float(value), 5) for value in decision.features],
                "draft": draft,
                "target": target,
            }
        )
    return {"correct": correct, "branches": branches}


def count_cells(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many branches fall into each of CELLS."""
    found = Counter(2 * b["draft"] + b["target"] for record in records for b in record["branches"])
    return {cell: found[i] for i, cell in enumerate(CELLS)}
