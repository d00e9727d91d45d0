"""The two jobs of a training worker: both branches of a mismatch, and a group of sampled trajectories.

A policy can only learn to beat the target from the outcome, never from what the target would say. So
each sampled mismatch is continued twice, after either token, and each continuation is checked against
the known answer. The four outcomes are kept apart: where only one side leads to a right answer the
policy learns accuracy, where both do it learns which wording is harmless, which is speed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tasks.checkers import check
from ..tasks.item import Task
from .rollouts import RolloutRunner

NEVER = 1 - 1e-6
"""A threshold that no score passes, but at which mismatches are still recorded."""

CELLS = ("both wrong", "only target right", "only draft right", "both right")


@dataclass(frozen=True)
class BranchJob:
    """One task to branch.

    Attributes:
        task: the task.
        branches: mismatches to branch at most.
        weights: the policy's parameters, from `policy.weights_of`.
        threshold: threshold before and after the mismatch; NEVER is the target alone.
        seed: chooses the mismatches, together with the task's id.
    """

    task: Task
    branches: int
    weights: dict[str, Any]
    threshold: float
    seed: int


@dataclass(frozen=True)
class GroupJob:
    """One prompt to answer several times.

    Attributes:
        task: the task.
        group: number of trajectories.
        weights: the policy's parameters, from `policy.weights_of`.
        speed_weight: reward for saved target passes, paid for a right answer only.
        seed: seed of the sampled decisions.
    """

    task: Task
    group: int
    weights: dict[str, Any]
    speed_weight: float
    seed: str


def run_branches(runner: RolloutRunner, job: BranchJob) -> dict[str, Any]:
    """Answer a task, and continue some of its mismatches the other way.

    Returns:
        `correct`: whether the answer was right; `branches`: for each mismatch the `features`, the
        outcomes `draft` and `target` of keeping either token, and the two `tokens`, the draft's first.
    """
    runner.begin_job(job.task, job.weights)
    base = runner.rollout(job.threshold)
    correct = check(job.task, runner.text(base.tokens))
    rng = random.Random(f"{job.seed} {job.task.id}")  # noqa: S311 - for sampling, not for secrets
    chosen = rng.sample(base.decisions, min(job.branches, len(base.decisions)))
    branches = []
    for decision in sorted(chosen, key=lambda d: d.position):
        other = decision.chosen if decision.kept else decision.drafted
        forced = [*base.tokens[: decision.position], other]
        continued = runner.rollout(job.threshold, forced=forced)
        outcome = check(job.task, runner.text(continued.tokens))
        draft, target = (correct, outcome) if decision.kept else (outcome, correct)
        branches.append(
            branch(decision.features, decision.drafted, decision.chosen, draft=draft, target=target)
        )
    return {"correct": correct, "branches": branches}


def branch(
    features: NDArray[np.float32], drafted: int, chosen: int, *, draft: bool, target: bool
) -> dict[str, Any]:
    """Return the record of a mismatch: what the policy sees, which side is right, and the tokens."""
    return {
        "features": [round(float(value), 5) for value in features],
        "draft": draft,
        "target": target,
        "tokens": [drafted, chosen],
    }


def count_cells(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many branches fall into each of CELLS."""
    found = Counter(2 * b["draft"] + b["target"] for record in records for b in record["branches"])
    return {cell: found[i] for i, cell in enumerate(CELLS)}


def run_group(runner: RolloutRunner, job: GroupJob) -> list[dict[str, Any]]:
    """Answer a task `group` times with sampled decisions and return the trajectories."""
    runner.begin_job(job.task, job.weights)
    trajectories = []
    for i in range(job.group):
        rng = random.Random(f"{job.seed} {job.task.id} {i}")  # noqa: S311 - not for secrets
        found = runner.rollout(0.5, rng=rng)
        correct = check(job.task, runner.text(found.tokens))
        tokens, passes = len(found.tokens), found.target_passes
        trajectories.append(
            {
                "correct": correct,
                "reward": reward(correct, passes, tokens, job.speed_weight),
                "tokens": tokens,
                "passes": passes,
                "features": [decision.features.tolist() for decision in found.decisions],
                "kept": [decision.kept for decision in found.decisions],
            }
        )
    return trajectories


def reward(correct: bool, passes: int, tokens: int, speed_weight: float) -> float:
    """Return the reward of an answer: 1 if it is right, plus the weighted share of passes it saved.

    Speed is never paid for a wrong answer; otherwise "always the draft" would win.
    """
    return 0.0 if not correct else 1.0 + speed_weight * (1 - passes / max(1, tokens))
