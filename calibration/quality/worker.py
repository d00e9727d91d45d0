"""One process of a quality measurement: its engines, and an item played in one mode after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ...errors import UsageError
from ...runtime.arbitration.baselines import RandomArbiter, baseline
from ...runtime.arbitration.learned import LearnedArbiter
from ...runtime.arbitration.protocol import Arbiter
from ...runtime.bundle.reader import Bundle
from ...runtime.decoding.completion import Completion
from ...runtime.decoding.placement import graph_shape
from ...runtime.decoding.session import Session, load
from ...runtime.engines.onnxruntime import OrtEngine, OrtOptions
from ...runtime.sampling.params import SamplingParams
from ..tasks.checkers import check
from ..tasks.item import Task
from .mode_summary import Answer
from .modes import Mode

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class QualityConfig:
    """What all modes have in common.

    Attributes:
        bundle: its folder.
        num_draft_tokens: tokens to draft a round; None for the bundle's default.
        max_tokens: tokens that an answer may take; None for the task's own limit, or else the
            bundle's default.
        processes: that play at the same time, one thread each.
    """

    bundle: Path
    num_draft_tokens: int | None = None
    max_tokens: int | None = None
    processes: int = 1


@dataclass(frozen=True)
class Job:
    """One item in all modes that are still to be played, in order."""

    task: Task
    modes: tuple[Mode, ...]


class Players:
    """The sessions of one process.

    Args:
        config: what the modes have in common.
        modes: which are played; the draft alone is loaded only if one of them asks for it.
    """

    def __init__(self, config: QualityConfig, modes: Sequence[Mode]) -> None:
        self._config = config
        # One thread a process: otherwise processes would fight over the cores.
        options = OrtOptions(threads=1)
        self._session = load(config.bundle, options=options, verify=False)
        self._alone = None
        if any(mode.kind == "draft" for mode in modes):
            self._alone = _draft_alone(config.bundle, self._session, options)
        self._graphs = {mode.graph: LearnedArbiter(mode.graph) for mode in modes if mode.graph}
        self._is_warm = False

    def play(self, job: Job) -> list[Answer]:
        """Return the answer to an item in each of its modes."""
        if not self._is_warm:  # buffers of each width are made when it first occurs
            for mode in job.modes:
                self._generate(job.task, mode, WARM_UP_TOKENS)
            self._is_warm = True
        limit = self._config.max_tokens or job.task.max_tokens
        return [self._answer(job.task, mode, limit) for mode in job.modes]

    def _answer(self, task: Task, mode: Mode, max_tokens: int | None) -> Answer:
        start = perf_counter()
        completion = self._generate(task, mode, max_tokens)
        seconds = perf_counter() - start
        stats = completion.stats
        return Answer(
            correct=check(task, completion.text),
            tokens=stats.num_generated_tokens,
            target_passes=stats.num_target_passes,
            seconds=seconds,
            mismatches=stats.num_mismatches,
            overrides=stats.num_overrides,
        )

    def _generate(self, task: Task, mode: Mode, max_tokens: int | None) -> Completion:
        session = self._alone if mode.kind == "draft" else self._session
        if session is None:
            raise UsageError("the draft alone was not loaded")
        plain = mode.kind in ("target", "draft")
        session.forget()  # no mode profits from what another one has read
        return session.generate(
            task.prompt,
            max_tokens=max_tokens,
            sampling=SamplingParams(stop=task.stop) if task.stop else None,
            num_draft_tokens=0 if plain else self._config.num_draft_tokens,
            mode="collab" if mode.is_judged else "strict",
            threshold=mode.threshold,
            arbiter=self._arbiter(mode, task),
        )

    def _arbiter(self, mode: Mode, task: Task) -> Arbiter | None:
        if mode.graph is not None:
            return self._graphs[mode.graph]
        if mode.rule is None:
            return None
        if mode.rule.startswith("random:"):
            # A seed of each item's own: the draws do not depend on who plays what in which order.
            rate, _, seed = mode.rule.removeprefix("random:").partition(",")
            return RandomArbiter(float(rate), f"{seed or 0}/{task.id}")
        return baseline(mode.rule)


@dataclass(frozen=True)
class Setup:
    """How a process makes its players; picklable."""

    config: QualityConfig
    modes: tuple[Mode, ...]

    def __call__(self) -> Players:
        """Load the engines."""
        return Players(self.config, self.modes)


def play_job(players: Players, job: Job) -> list[Answer]:
    """Do a job; a plain function, which other processes can be sent."""
    return players.play(job)


def _draft_alone(folder: Path, session: Session, options: OrtOptions) -> Session:
    """Return a session that decodes plainly with the bundle's draft."""
    bundle = Bundle.open(folder, verify=False)
    manifest = bundle.manifest
    entry = manifest.models.draft
    if entry is None:
        raise UsageError("this bundle has no draft, so the mode 'draft' cannot be played")
    engine = OrtEngine(bundle.path(entry.graph), graph_shape(manifest, entry), options)
    return Session(manifest, engine, None, session.codec, drafter="none")
