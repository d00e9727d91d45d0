"""Trajectories for the policy gradient: answers played with sampled decisions, and what they earn."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from ..tasks.checkers import check
from ..tasks.item import Task
from .rollouts import Player


@dataclass(frozen=True)
class GroupJob:
    """One prompt to play several times.

    Attributes:
        task: the task.
        group: trajectories.
        weights: the policy's parameters, from `policy.weights_of`.
        speed_weight: reward for saved target passes, paid for a right answer only.
        seed: of the sampled decisions.
    """

    task: Task
    group: int
    weights: dict[str, Any]
    speed_weight: float
    seed: str


def play_group(player: Player, job: GroupJob) -> list[dict[str, Any]]:
    """Play a task `group` times with sampled decisions and return the trajectories."""
    player.use(job.weights)
    prompt = player.session.encode(job.task.prompt)
    trajectories = []
    for i in range(job.group):
        rng = random.Random(f"{job.seed} {job.task.id} {i}")  # noqa: S311 - not for secrets
        played = player.play(prompt, 0.5, rng=rng, stop=job.task.stop)
        correct = check(job.task, player.text(played.tokens))
        trajectories.append(
            {
                "correct": correct,
                "reward": reward(
                    correct, played.target_passes, len(played.tokens), job.speed_weight
                ),
                "tokens": len(played.tokens),
                "passes": played.target_passes,
                "features": [decision.features.tolist() for decision in played.decisions],
                "kept": [decision.kept for decision in played.decisions],
            }
        )
    return trajectories


def reward(correct: bool, passes: int, tokens: int, speed_weight: float) -> float:
    """Return what an answer earns: being right, and if it is, the share of passes it saved.

    Speed is never paid for a wrong answer; otherwise "always the draft" would win.
    """
    return 0.0 if not correct else 1.0 + speed_weight * (1 - passes / max(1, tokens))
