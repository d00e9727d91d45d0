"""The policy-gradient stage: answer a batch of prompts, update the policy, and repeat.

After each update the policy is saved with everything that the next update depends on, and the
trajectories of the current update are in a journal as they arrive. So a kill costs at most the answers
that were being generated.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runtime.bundle.durable import write_whole
from ..journal import Journal, digest
from ..quality.workers import Workers, run_missing
from ..tasks.item import Task
from .config import TrainingConfig
from .network import ArbiterNetwork
from .policy import PolicyGradient, weights_of
from .rollout_jobs import GroupJob, run_group
from .run_log import RunLog

STATE = "policy.safetensors"
ROLLOUTS = "rollouts.jsonl"


def improve(
    workers: Workers,
    warm: ArbiterNetwork,
    tasks: Sequence[Task],
    decisive: Sequence[Task],
    config: TrainingConfig,
    work: Path,
    log: RunLog,
    progress: Callable[[str], None],
) -> ArbiterNetwork:
    """Return a copy of the warm start, improved by policy gradient.

    Args:
        workers: with a `RolloutRunner` each.
        warm: the network to start from.
        tasks: prompts to answer.
        decisive: prompts on which a decision is known to matter; the share `config.decisive_share` of
            every update is drawn from these. If all trajectories end alike, nothing is learned.
        config: every hyper-parameter.
        work: folder of the state and the journal.
        log: gets the figures of each update.
        progress: called with a line per update.
    """
    network = ArbiterNetwork(warm.config)
    network.load_state_dict(warm.state_dict())
    learner = PolicyGradient(network, config)
    job = _digest(warm, tasks, decisive, config)
    done = _resume(work / STATE, job, learner)
    if done:
        progress(f"continuing after update {done} of {config.steps}")
    for step in range(done, config.steps):
        chosen = _draw(tasks, decisive, config, step)
        weights = weights_of(network)
        seed = f"{config.seed}.{step}"
        jobs = {
            f"{job} {step} {task.id}": GroupJob(
                task, config.group, weights, config.speed_weight, seed
            )
            for task in chosen
        }
        journal = Journal(work / ROLLOUTS)
        label = f"update {step + 1}/{config.steps}"
        groups = run_missing(workers, run_group, jobs, journal, label, _RewardSoFar())
        figures = learner.update(groups) | _sum_up(groups)
        log.add(f"step {step}", figures)
        _save(work / STATE, job, step + 1, learner)
        journal.clear()
        progress(
            f"{label}: right {figures['accuracy']:.1%}, reward {figures['reward']:.3f}, "
            f"{figures['tokens_per_pass']:.2f} tokens per pass, kept {figures['keep_rate']:.1%}, "
            f"KL {figures['kl']:.3f}"
        )
    return network


def decisive_tasks(tasks: Sequence[Task], records: Sequence[dict[str, Any]]) -> list[Task]:
    """Return the branched tasks on which the outcome of some branch differs from the answer's.

    Args:
        tasks: in the order of `records`, possibly more of them.
        records: from `run_branches`.
    """
    return [
        task
        for task, record in zip(tasks, records, strict=False)
        if any(branch["draft"] != branch["target"] for branch in record["branches"])
    ]


def _draw(
    tasks: Sequence[Task], decisive: Sequence[Task], config: TrainingConfig, step: int
) -> list[Task]:
    """Draw the prompts of one update, each once; a step always draws the same ones."""
    rng = random.Random(f"{config.seed} {step}")  # noqa: S311 - for sampling, not for secrets
    count = min(round(config.prompts * config.decisive_share), len(decisive))
    chosen = rng.sample(list(decisive), count)
    ids = {task.id for task in chosen}
    others = [task for task in tasks if task.id not in ids]
    return chosen + rng.sample(others, min(config.prompts - count, len(others)))


def _sum_up(groups: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    found = [trajectory for group in groups for trajectory in group]
    tokens = sum(trajectory["tokens"] for trajectory in found)
    return {
        "accuracy": sum(trajectory["correct"] for trajectory in found) / len(found),
        "reward": sum(trajectory["reward"] for trajectory in found) / len(found),
        "tokens_per_pass": tokens / sum(trajectory["passes"] for trajectory in found),
        "tokens_per_answer": tokens / len(found),
    }


class _RewardSoFar:
    """The text of the progress bar: the mean reward of the update's trajectories so far."""

    def __init__(self) -> None:
        self._rewards: list[float] = []

    def __call__(self, group: Sequence[dict[str, Any]]) -> str:
        self._rewards += [trajectory["reward"] for trajectory in group]
        return f"reward {sum(self._rewards) / len(self._rewards):.3f}"


def _digest(
    warm: ArbiterNetwork,
    tasks: Sequence[Task],
    decisive: Sequence[Task],
    config: TrainingConfig,
) -> str:
    """Return a digest of all that a state on disk must have been made with to be this job's."""
    settings = asdict(config) | {"steps": None}  # more steps may be asked for later
    ids = [[task.id for task in some] for some in (tasks, decisive)]
    return digest(json.dumps([settings, ids, weights_of(warm)]))


def _save(path: Path, job: str, done: int, learner: PolicyGradient) -> None:
    from safetensors.torch import save

    write_whole(path, save(learner.state(), metadata={"job": job, "updates": str(done)}))


def _resume(path: Path, job: str, learner: PolicyGradient) -> int:
    """Restore the learner from the state that this job saved at `path`; return the updates done."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata.get("job") != job:
                return 0
            learner.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return int(metadata["updates"])
    except (FileNotFoundError, SafetensorError):
        return 0  # no state yet, or a damaged one: the updates start over
