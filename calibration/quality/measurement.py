"""Accuracy and speed of the modes, item by item on the same items.

The modes take turns inside each item and their order rotates, so a machine that slows down slows all
of them down. Each finished answer is a line of a journal, and is not generated again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...export.arbiter_folder import GRAPH
from ...runtime.bundle.files import sha256_of
from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.reader import Bundle, find_bundle
from ...runtime.text.reference import RECORD_FILE
from ..journal import Journal, digest
from ..tasks.checkers import require_working
from ..tasks.item import Task
from .machine_facts import machine_facts
from .mode_runner import ModeJob, ModeSetup, QualityConfig, run_modes_of
from .mode_summary import Answer, override_rate, summarise_modes
from .modes import BASELINE_THRESHOLD, Mode
from .workers import Workers


def measure_quality(
    config: QualityConfig,
    tasks: Sequence[Task],
    modes: Sequence[Mode],
    results: Path | None = None,
) -> dict[str, Any]:
    """Answer every task in every mode and return the figures.

    Args:
        config: the settings that all modes share.
        tasks: with different ids.
        modes: see `parse_modes`. A random mode without a rule runs last, at the override rate of the
            first collab mode.
        results: journal of answers; a run with the same bundle and settings continues from it.

    Returns:
        What `summarise_modes` returns, and `environment`.

    Raises:
        CospecError: of any kind that `Session.generate`, a worker or a checker raises.
    """
    run = _Run(config, results, modes)
    fixed = [mode for mode in modes if mode.kind != "baseline" or mode.rule is not None]
    answers = run.answers(tasks, fixed)
    for mode in modes:
        if mode not in fixed:
            rate = override_rate(next(answers[m.name] for m in fixed if m.kind == "collab"))
            mode = replace(mode, rule=f"random:{rate or 0:.6f}", threshold=BASELINE_THRESHOLD)
            answers |= run.answers(tasks, [mode])
    return {
        **summarise_modes(modes, answers, [task.kind for task in tasks]),
        "environment": run.environment(modes, len(tasks)),
    }


def run_modes(
    config: QualityConfig, tasks: Sequence[Task], modes: Sequence[Mode], results: Path | None = None
) -> dict[str, list[Answer]]:
    """Answer every task in every mode; return the answers by mode, in the order of `tasks`.

    Arguments and errors as in `measure_quality`.
    """
    return _Run(config, results, modes).answers(tasks, modes)


class _Run:
    """A measurement on one bundle with one journal."""

    def __init__(self, config: QualityConfig, results: Path | None, modes: Sequence[Mode]) -> None:
        bundle = Bundle.open(find_bundle(config.bundle))
        _check(bundle, modes)
        k = config.num_draft_tokens or bundle.manifest.generation.num_draft_tokens
        self._config = replace(config, bundle=bundle.root, num_draft_tokens=k)
        self._manifest = bundle.manifest
        self._journal = Journal(results)
        self._reused = 0

    def answers(self, tasks: Sequence[Task], modes: Sequence[Mode]) -> dict[str, list[Answer]]:
        """Generate the answers that the journal lacks; return all by mode, in the order of `tasks`."""
        require_working(tasks, self._config.sandbox_level)
        keys = self._keys(tasks, modes)
        done = self._journal.done
        self._reused += sum(key in done for key in keys.values())
        jobs = []
        for i, task in enumerate(tasks):
            turned = [modes[(i + j) % len(modes)] for j in range(len(modes))]
            missing = tuple(mode for mode in turned if keys[mode.name, task.id] not in done)
            if missing:
                jobs.append(ModeJob(task, missing))
        setup = ModeSetup(self._config, tuple(modes))
        finished, shares = len(tasks) - len(jobs), _Shares(modes)
        with Workers(self._config, setup) as workers:
            for i, answers in workers.run(run_modes_of, jobs, "answering", finished, shares.text):
                for mode, answer in zip(jobs[i].modes, answers, strict=True):
                    self._journal.write(keys[mode.name, jobs[i].task.id], asdict(answer))
                    shares.add(mode.name, answer.correct)
        return {
            mode.name: [Answer(**done[keys[mode.name, task.id]]) for task in tasks]
            for mode in modes
        }

    def environment(self, modes: Sequence[Mode], items: int) -> dict[str, Any]:
        """Return what the figures depend on beside the models."""
        config, manifest = self._config, self._manifest
        return {
            "bundle": manifest.name,
            "seal": manifest.seal,
            "precision": manifest.precision,
            "num_draft_tokens": config.num_draft_tokens,
            "max_tokens": config.max_tokens,
            "items": items,
            "answers_from_an_earlier_run": self._reused,
            "thresholds": {mode.name: mode.threshold for mode in modes if mode.kind == "collab"},
            "arbiters": {mode.name: mode.graph.name for mode in modes if mode.graph is not None},
            "processes": config.processes,
            "threads_per_process": config.threads,
            **machine_facts(),
        }

    def _keys(self, tasks: Sequence[Task], modes: Sequence[Mode]) -> dict[tuple[str, str], str]:
        """Return the journal's key of each (mode, task id), made of all that the answer depends on.

        A bundle that is exported again or gets another arbiter keeps the answers of its other modes.
        """
        config = self._config
        record = [each.name for each in fields(Answer)]
        common = (
            record,
            answering_parts(self._manifest),
            config.num_draft_tokens,
            config.max_tokens,
        )
        own = [entry.sha256 for entry in self._manifest.files if entry.path == GRAPH]
        asked = {
            task.id: {name: value for name, value in asdict(task).items() if name != "solution"}
            for task in tasks
        }
        keys = {}
        for mode in modes:
            graph = [sha256_of(mode.graph)] if mode.graph else own
            judge = (mode.threshold, mode.rule, graph if mode.kind == "collab" else None)
            setting = (*common, mode.kind, *judge)
            for task in tasks:
                facts = digest(repr((setting, asked[task.id])))
                keys[mode.name, task.id] = f"{mode.kind} {task.id} {facts}"
        return keys


def answering_parts(manifest: Manifest) -> tuple[Any, ...]:
    """Return what answers without an arbiter depend on: files and settings, not names and figures."""
    apart = (manifest.certificate, GRAPH, RECORD_FILE)
    files = {entry.path: entry.sha256 for entry in manifest.files if entry.path not in apart}
    return (files, manifest.generation, manifest.capacity, manifest.precision, manifest.lowering)


@dataclass
class _Shares:
    """The text of the progress bar: the share of right answers so far, of the first few modes."""

    modes: Sequence[Mode]
    _right: Counter[str] = field(default_factory=Counter)
    _run: Counter[str] = field(default_factory=Counter)

    def add(self, mode: str, correct: bool) -> None:
        self._run[mode] += 1
        self._right[mode] += correct

    def text(self, _: object) -> str:
        names = [mode.name for mode in self.modes[:5] if self._run[mode.name]]
        return ", ".join(f"{name} {self._right[name] / self._run[name]:.1%}" for name in names)


def _check(bundle: Bundle, modes: Sequence[Mode]) -> None:
    """Refuse modes that a bundle cannot run before anything is loaded."""
    for mode in modes:
        if bundle.manifest.models.draft is None and mode.kind not in ("target", "sample"):
            raise UsageError(
                f"this bundle has no draft, so the mode '{mode.name}' cannot be run",
                hint="only the mode 'target' can; or export again with --draft",
            )
        if mode.graph is not None and not mode.graph.is_file():
            raise UsageError(f"{mode.graph}: no such arbiter graph")
