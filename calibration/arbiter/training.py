"""Training an arbiter from end to end: branches, warm start, policy gradient.

All results go into one work folder, in journals and states from which a job that was killed continues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.reader import Bundle
from ..journal import Journal, digest
from ..quality.workers import Scale, Workers, run_missing
from ..tasks.checkers import require_working
from ..tasks.item import Task
from .config import TrainingConfig
from .install import measured_files
from .network import ArbiterConfig, ArbiterNetwork
from .network_graph import export_features
from .policy import warm_start, weights_of
from .policy_gradient import decisive_tasks, improve
from .rollout_jobs import NEVER, BranchJob, count_cells, run_branches
from .rollouts import RolloutSetup
from .run_log import RunLog, plot_training
from .separation import separation
from .solutions import SolutionJob, read_solution


@dataclass(frozen=True)
class Trained:
    """The result of training.

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
    scale: Scale,
    progress: Callable[[str], None],
    branches: Path | None = None,
) -> Trained:
    """Train an arbiter on `tasks`.

    Args:
        bundle: folder of the bundle whose engines run the rollouts.
        tasks: training tasks; the first `warm_items` are branched.
        config: every hyper-parameter.
        work: folder for journals, weights and the log; made if missing.
        scale: workers of the rollouts.
        progress: called with a line per stage and update.
        branches: journal of the branches, which other trainings may share; None for one in `work`.
    """
    require_working(tasks, scale.sandbox_level)
    opened = Bundle.open(bundle)  # hashed here, once for all workers
    shape = arbiter_shape(opened.manifest, config)
    log = RunLog(work / "log.json", config)
    with Workers(scale, rollout_setup(bundle, shape, config, work, scale.threads)) as workers:
        journal = Journal(branches or work / "branches.jsonl")
        engines = measured_files(opened)
        records = branch_tasks(workers, tasks, config, shape, journal, engines)
        solved = read_solutions(workers, tasks, config, work, engines)
        warm = warm_network(records, solved, shape, config, log, progress)
        decisive = decisive_tasks(tasks, records)
        network = improve(workers, warm, tasks, decisive, config, work, log, progress)
    if log.updates():
        plot_training(log.updates(), work / "training.png")
    return Trained(warm, network)


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


def rollout_setup(
    bundle: Path, shape: ArbiterConfig, config: TrainingConfig, work: Path, threads: int
) -> RolloutSetup:
    """Return the setup of the workers; writes the graph that computes the features into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    graph = work / "features.onnx"
    export_features(shape, graph)
    return RolloutSetup(
        bundle, graph.resolve(), shape, config.max_tokens, config.num_draft_tokens, threads
    )


def branch_tasks(
    workers: Workers,
    tasks: Sequence[Task],
    config: TrainingConfig,
    shape: ArbiterConfig,
    journal: Journal,
    engines: dict[str, str],
) -> list[dict[str, Any]]:
    """Branch the first `warm_items` tasks, except those that the journal has already.

    Args:
        workers: with a `RolloutRunner` each.
        tasks: training tasks.
        config: every hyper-parameter.
        shape: of the network; says which features are recorded.
        journal: of finished tasks. Only branches of the same engines and settings count.
        engines: hashes of the engines' files, from `install.measured_files`.
    """
    weights = weights_of(ArbiterNetwork(shape))
    lengths = (config.num_draft_tokens, config.max_tokens)
    made_with = digest(repr((engines, config.features, config.branches, config.seed, *lengths)))
    jobs = {
        f"{task.id} {made_with}": BranchJob(task, config.branches, weights, NEVER, config.seed)
        for task in tasks[: config.warm_items]
    }
    return run_missing(workers, run_branches, jobs, journal, "branches")


def read_solutions(
    workers: Workers,
    tasks: Sequence[Task],
    config: TrainingConfig,
    work: Path,
    engines: dict[str, str],
) -> list[dict[str, Any]]:
    """Read the worked solutions of the first `solutions` tasks that have one.

    Arguments as in `branch_tasks`.
    """
    made_with = (engines, config.features, config.num_draft_tokens)
    having = [task for task in tasks if task.solution][: config.solutions]
    jobs = {
        f"{task.id} {digest(repr((made_with, task.prompt, task.solution)))}": SolutionJob(task)
        for task in having
    }
    journal = Journal(work / "solutions.jsonl")
    return run_missing(workers, read_solution, jobs, journal, "solutions")


def warm_network(
    records: Sequence[dict[str, Any]],
    solved: Sequence[dict[str, Any]],
    shape: ArbiterConfig,
    config: TrainingConfig,
    log: RunLog,
    progress: Callable[[str], None],
) -> ArbiterNetwork:
    """Fit the warm start to branches and to mismatches in solutions, and log it."""
    kinds = {"branches": records} | ({"mismatches in solutions": solved} if solved else {})
    cells = {kind: count_cells(found) for kind, found in kinds.items()}
    areas = separation(kinds, shape, config)
    for kind, counts in cells.items():
        found = areas[kind]
        separated = ""
        if found is not None:
            area, (low, high) = found
            separated = f"; sides separated, unseen: {area:.2f} ({low:.2f} to {high:.2f})"
        progress(f"{kind}: {', '.join(f'{n} {cell}' for cell, n in counts.items())}{separated}")
    network, losses = warm_start([*records, *solved], shape, config)
    log.add("warm", {"cells": cells, "areas": areas, "losses": losses})
    return network
