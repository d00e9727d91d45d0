"""Training an arbiter from end to end: branches, warm start, policy gradient.

Everything lands in one work folder: branches in a journal, so that a job that was killed does not play
them again, and a log of every figure. The updates by gradient start over.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..models.arbiter import ArbiterConfig, ArbiterNetwork, export_arbiter
from ..runtime.bundle import Bundle
from ..runtime.manifest import Manifest
from .config import TrainingConfig
from .counterfactual import NEVER, BranchJob, branch, count_cells
from .embed import measured_files
from .play import PlayerSetup
from .policy import PolicyGradient, warm_start, weights_of
from .reinforce import GroupJob, play_group
from .tasks.item import Task
from .workers import Journal, Workers, play_all


def train_arbiter(
    bundle: Path,
    tasks: Sequence[Task],
    config: TrainingConfig,
    work: Path,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[ArbiterNetwork, ArbiterNetwork]:
    """Train on `tasks` and return the warm start and the final network.

    Args:
        bundle: folder of the bundle whose engines play.
        tasks: training tasks; the first `warm_items` are branched.
        config: every hyper-parameter.
        work: folder for journals, weights and the log; made if missing.
        processes: that play at the same time.
        report: called with a line per stage and update.
    """
    work.mkdir(parents=True, exist_ok=True)
    opened = Bundle.open(bundle)  # hashed here, once for all processes
    shape = arbiter_shape(opened.manifest, config)
    graph = work / "features.onnx"
    export_arbiter(ArbiterNetwork(shape), graph)
    setup = PlayerSetup(bundle, graph, shape, config.max_tokens, config.num_draft_tokens)
    log = _Log(work / "log.json", config)
    with Workers(processes, setup) as workers:
        records = _branches(workers, tasks, shape, config, work, measured_files(opened))
        cells = count_cells(records)
        report(f"branches: {cells}")
        warm, losses = warm_start(records, shape, config)
        log.add("warm", {"cells": cells, "losses": losses})
        network = _reinforce(workers, warm, tasks, config, log, report)
    return warm, network


def arbiter_shape(manifest: Manifest, config: TrainingConfig) -> ArbiterConfig:
    """Return the network's shape for a bundle's models."""
    models = manifest.models
    draft = 0 if models.draft is None else models.draft.hidden_size
    return ArbiterConfig(
        features=config.features,
        width=config.width,
        target_hidden=models.target.hidden_size,
        draft_hidden=draft,
    )


def _branches(
    workers: Workers,
    tasks: Sequence[Task],
    shape: ArbiterConfig,
    config: TrainingConfig,
    work: Path,
    engines: dict[str, str],
) -> list[dict[str, Any]]:
    """Play the branches, but for those that the same settings and engines have played already."""
    weights = weights_of(ArbiterNetwork(shape))
    lengths = (config.num_draft_tokens, config.max_tokens)
    setting = (engines, config.features, config.branches, config.seed, *lengths)
    digest = hashlib.sha256(repr(setting).encode()).hexdigest()[:16]
    jobs = [
        (f"{task.id} {digest}", BranchJob(task, config.branches, weights, NEVER, config.seed))
        for task in tasks[: config.warm_items]
    ]
    journal = Journal(work / "branches.jsonl")
    return play_all(workers, branch, jobs, journal, "branches")


def _reinforce(
    workers: Workers,
    warm: ArbiterNetwork,
    tasks: Sequence[Task],
    config: TrainingConfig,
    log: _Log,
    report: Callable[[str], None],
) -> ArbiterNetwork:
    """Improve a copy of the warm start by policy gradient."""
    network = ArbiterNetwork(warm.config)
    network.load_state_dict(warm.state_dict())
    learner = PolicyGradient(network, config)
    rng = random.Random(config.seed)  # noqa: S311 - for sampling, not for secrets
    for step in range(config.steps):
        weights = weights_of(network)
        jobs = [
            GroupJob(task, config.group, weights, config.speed_weight, f"{config.seed}.{step}")
            for task in rng.sample(list(tasks), config.prompts)
        ]
        groups = list(workers.map(play_group, jobs))
        played = [trajectory for group in groups for trajectory in group]
        figures = learner.update(groups)
        figures["accuracy"] = sum(t["correct"] for t in played) / len(played)
        figures["tokens_per_pass"] = sum(t["tokens"] for t in played) / sum(
            t["passes"] for t in played
        )
        figures["reward"] = sum(t["reward"] for t in played) / len(played)
        log.add(f"step {step}", figures)
        report(
            f"update {step + 1}/{config.steps}: right {figures['accuracy']:.1%}, "
            f"{figures['tokens_per_pass']:.2f} tokens a pass, kept {figures['keep_rate']:.1%}, "
            f"KL {figures['kl']:.3f}"
        )
    return network


class _Log:
    """Every figure of the run, as one JSON file that is whole at any time."""

    def __init__(self, path: Path, config: TrainingConfig) -> None:
        self._path = path
        self._entries: dict[str, Any] = {"config": asdict(config)}

    def add(self, name: str, figures: dict[str, Any]) -> None:
        """Add a stage's figures and write the file."""
        self._entries[name] = figures
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._entries, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)
