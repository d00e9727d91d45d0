"""Accuracy and speed of the ways of decoding, item by item on the same items.

The modes take turns inside each item and their order rotates, so that a machine that slows down slows
all of them down. Each finished answer is a line in a journal; what is there is not played again.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...runtime.bundle.reader import Bundle, find_bundle
from ..tasks.item import Task
from .machine_facts import machine_facts
from .mode_summary import Answer, oracle, override_rate, paired_tests, summarise
from .modes import BASELINE_THRESHOLD, Mode
from .worker import Job, QualityConfig, Setup, play_job
from .worker_pool import Journal, Workers, digest


def measure_quality(
    config: QualityConfig,
    tasks: Sequence[Task],
    modes: Sequence[Mode],
    results: Path | None = None,
) -> dict[str, Any]:
    """Play every task in every mode and return the figures.

    Args:
        config: what the modes have in common.
        tasks: with different ids.
        modes: see `parse_modes`. A random mode without a rule is played last, at the override rate
            of the first collab mode.
        results: journal of answers; a run with the same bundle and settings goes on from it.

    Returns:
        `modes` (see `summarise`), `oracle`, `mcnemar` and `environment`.

    Raises:
        CospecError: of any kind that `Session.generate` or a checker raises.
    """
    config, bundle = _open(config, modes)
    journal = Journal(results)
    fixed = [mode for mode in modes if mode.kind != "baseline" or mode.rule is not None]
    answers, reused = _play(config, bundle, tasks, fixed, journal)
    for mode in modes:
        if mode not in fixed:
            rate = override_rate(next(answers[m.name] for m in fixed if m.kind == "collab"))
            rule = f"random:{rate or 0:.6f}"
            mode = replace(mode, rule=rule, threshold=BASELINE_THRESHOLD)
            played, again = _play(config, bundle, tasks, [mode], journal)
            answers, reused = {**answers, **played}, reused + again
    return {
        "modes": {
            mode.name: summarise([task.kind for task in tasks], answers[mode.name])
            for mode in modes
        },
        "oracle": oracle(answers),
        "mcnemar": paired_tests(modes, answers),
        "environment": _environment(config, bundle, modes, len(tasks), reused),
    }


def play_modes(
    config: QualityConfig, tasks: Sequence[Task], modes: Sequence[Mode], results: Path | None = None
) -> dict[str, list[Answer]]:
    """Play every task in every mode and return the answers by mode, in the order of `tasks`.

    Arguments and errors as in `measure_quality`.
    """
    config, bundle = _open(config, modes)
    return _play(config, bundle, tasks, modes, Journal(results))[0]


def _open(config: QualityConfig, modes: Sequence[Mode]) -> tuple[QualityConfig, Bundle]:
    """Check the bundle, and that it can play the modes; return the settings with nothing left open."""
    bundle = Bundle.open(find_bundle(config.bundle))
    _check(bundle, modes)
    k = config.num_draft_tokens or bundle.manifest.generation.num_draft_tokens
    return replace(config, bundle=bundle.root, num_draft_tokens=k), bundle


def _play(
    config: QualityConfig,
    bundle: Bundle,
    tasks: Sequence[Task],
    modes: Sequence[Mode],
    journal: Journal,
) -> tuple[dict[str, list[Answer]], int]:
    """Play what the journal lacks.

    Returns:
        Answers by mode in the order of `tasks`, and how many the journal already held.
    """
    from tqdm import tqdm

    keys = _keys(config, bundle, tasks, modes)
    done = {key: Answer(**record) for key, record in journal.read().items() if key in keys.values()}
    reused = len(done)
    jobs = []
    for i, task in enumerate(tasks):
        turned = [modes[(i + j) % len(modes)] for j in range(len(modes))]
        missing = tuple(mode for mode in turned if keys[mode.name, task.id] not in done)
        if missing:
            jobs.append(Job(task, missing))
    right, played = Counter[str](), Counter[str]()
    for (name, _), key in keys.items():
        if key in done:
            played[name] += 1
            right[name] += done[key].correct
    if jobs:
        setup = Setup(config, tuple(modes))
        with Workers(config.processes, setup) as workers, journal.appending() as write:
            bar = tqdm(
                zip(jobs, workers.map(play_job, jobs), strict=True),
                total=len(tasks),
                initial=len(tasks) - len(jobs),
                desc="playing",
                unit="item",
                disable=not sys.stderr.isatty(),
            )
            for job, answers in bar:
                for mode, answer in zip(job.modes, answers, strict=True):
                    key = keys[mode.name, job.task.id]
                    done[key] = answer
                    write(key, asdict(answer))
                    played[mode.name] += 1
                    right[mode.name] += answer.correct
                shares = (f"{m.name} {right[m.name] / played[m.name]:.1%}" for m in modes[:5])
                bar.set_postfix_str(", ".join(shares), refresh=False)
    by_mode = {mode.name: [done[keys[mode.name, task.id]] for task in tasks] for mode in modes}
    return by_mode, reused


def _keys(
    config: QualityConfig, bundle: Bundle, tasks: Sequence[Task], modes: Sequence[Mode]
) -> dict[tuple[str, str], str]:
    """Return the journal's key of each (mode, task id): a digest of all that the answer depends on."""
    common = (bundle.manifest.seal, config.num_draft_tokens, config.max_tokens)
    keys = {}
    for mode in modes:
        graph = mode.graph and hashlib.sha256(mode.graph.read_bytes()).hexdigest()
        setting = (*common, mode.kind, mode.threshold, mode.rule, graph)
        for task in tasks:
            keys[mode.name, task.id] = (
                f"{mode.name} {task.id} {digest(repr((setting, asdict(task))))}"
            )
    return keys


def _check(bundle: Bundle, modes: Sequence[Mode]) -> None:
    """Refuse modes that a bundle cannot play before anything is loaded."""
    for mode in modes:
        if bundle.manifest.models.draft is None and mode.kind != "target":
            raise UsageError(
                f"this bundle has no draft, so the mode '{mode.name}' cannot be played",
                hint="only the mode 'target' can; or export again with --draft",
            )
        if mode.graph is not None and not mode.graph.is_file():
            raise UsageError(f"{mode.graph}: no such arbiter graph")


def _environment(
    config: QualityConfig, bundle: Bundle, modes: Sequence[Mode], items: int, reused: int
) -> dict[str, Any]:
    """Return what the figures depend on beside the models."""
    graphs = {mode.name: mode.graph.name for mode in modes if mode.graph is not None}
    return {
        "bundle": bundle.manifest.name,
        "seal": bundle.manifest.seal,
        "precision": bundle.manifest.precision,
        "num_draft_tokens": config.num_draft_tokens,
        "max_tokens": config.max_tokens,
        "items": items,
        "answers_from_an_earlier_run": reused,
        "thresholds": {mode.name: mode.threshold for mode in modes if mode.kind == "collab"},
        "arbiters": graphs,
        "processes": config.processes,
        "threads_per_process": 1,
        **machine_facts(),
    }
