"""Training an arbiter from end to end: branches, warm start, policy gradient.

Everything lands in one work folder, in journals and states that a job which was killed goes on from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.reader import Bundle
from ..quality.worker_pool import Journal, Workers, digest, play_all
from ..tasks.item import Task
from .branches import NEVER, BranchJob, branch, count_cells
from .config import TrainingConfig
from .install import measured_files
from .network import ArbiterConfig, ArbiterNetwork, export_features
from .policy import warm_start, weights_of
from .policy_gradient import decisive_tasks, improve
from .rollouts import PlayerSetup
from .run_log import RunLog
from .training_plot import plot_training


@dataclass(frozen=True)
class Trained:
    """What training made.

    Attributes:
        warm: the network after the warm start, from supervision alone.
        network: the same, improved by policy gradient.
    """

    warm: ArbiterNetwork
    network: ArbiterNetwork


def train_arbiter(
    bundle: Path,
    tasks: Sequence[Task],
    config: TrainingConfig,
    work: Path,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train an arbiter on `tasks`.

    Args:
        bundle: folder of the bundle whose engines play.
        tasks: training tasks; the first `warm_items` are branched.
        config: every hyper-parameter.
        work: folder for journals, weights and the log; made if missing.
        processes: that play at the same time.
        report: called with a line per stage and update.
    """
    opened = Bundle.open(bundle)  # hashed here, once for all processes
    shape = arbiter_shape(opened.manifest, config)
    with Workers(processes, player_setup(bundle, shape, config, work)) as workers:
        journal = Journal(work / "branches.jsonl")
        records = play_branches(workers, tasks, shape, config, journal, measured_files(opened))
        return train_from_branches(workers, tasks, records, shape, config, work, report)


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


def player_setup(
    bundle: Path, shape: ArbiterConfig, config: TrainingConfig, work: Path
) -> PlayerSetup:
    """Return how a process makes its player, with the graph that computes the features."""
    work.mkdir(parents=True, exist_ok=True)
    graph = work / "features.onnx"
    export_features(shape, graph)
    return PlayerSetup(bundle, graph, shape, config.max_tokens, config.num_draft_tokens)


def play_branches(
    workers: Workers,
    tasks: Sequence[Task],
    shape: ArbiterConfig,
    config: TrainingConfig,
    journal: Journal,
    engines: dict[str, str],
) -> list[dict[str, Any]]:
    """Branch the first `warm_items` tasks, but for those that are in the journal already.

    Args:
        workers: processes with a `Player` each.
        tasks: training tasks.
        shape: of the network; says which features are recorded.
        config: every hyper-parameter.
        journal: of finished tasks. Only branches of the same engines and settings count.
        engines: hashes of the engines' files, from `embed.measured_files`.
    """
    weights = weights_of(ArbiterNetwork(shape))
    lengths = (config.num_draft_tokens, config.max_tokens)
    setting = (engines, config.features, config.branches, config.seed, *lengths)
    played_by = digest(repr(setting))
    jobs = [
        (f"{task.id} {played_by}", BranchJob(task, config.branches, weights, NEVER, config.seed))
        for task in tasks[: config.warm_items]
    ]
    return play_all(workers, branch, jobs, journal, "branches")


def train_from_branches(
    workers: Workers,
    tasks: Sequence[Task],
    records: Sequence[dict[str, Any]],
    shape: ArbiterConfig,
    config: TrainingConfig,
    work: Path,
    report: Callable[[str], None],
) -> Trained:
    """Fit the warm start to `records`, the branches of the first of `tasks`, and improve it."""
    log = RunLog(work / "log.json", config)
    cells = count_cells(records)
    report(f"branches: {', '.join(f'{count} {cell}' for cell, count in cells.items())}")
    warm, losses = warm_start(records, shape, config)
    log.add("warm", {"cells": cells, "losses": losses})
    decisive = decisive_tasks(tasks, records)
    network = improve(workers, warm, tasks, decisive, config, work, log, report)
    if log.updates():
        plot_training(log.updates(), work / "training.png")
    return Trained(warm, network)
