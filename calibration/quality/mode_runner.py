"""The work of one worker of a quality measurement: it answers an item in one mode after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ...errors import UsageError
from ...runtime.arbitration.baselines import RandomArbiter, baseline
from ...runtime.arbitration.learned import LearnedArbiter
from ...runtime.arbitration.protocol import Arbiter
from ...runtime.decoding.completion import Stream
from ...runtime.decoding.session import Prompt, Session, load
from ...runtime.engines.onnxruntime import OrtOptions
from ...runtime.sampling.params import SamplingParams
from ..tasks.checkers import check
from ..tasks.item import Task
from .mode_summary import Answer
from .modes import Mode, sampling_of
from .threshold_range import RangeArbiter
from .workers import Scale

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class QualityConfig(Scale):
    """The settings that all modes share.

    Attributes:
        bundle: its folder. On a cluster every node must have it there.
        num_draft_tokens: draft tokens per round; None for the bundle's default.
        max_tokens: longest answer in tokens; None for the task's own limit, or else the bundle's
            default.
    """

    bundle: Path
    num_draft_tokens: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class ModeJob:
    """One item, and the modes that still have to answer it, in order."""

    task: Task
    modes: tuple[Mode, ...]


@dataclass(frozen=True)
class ModeSetup:
    """Makes a worker's runner; picklable."""

    config: QualityConfig
    modes: tuple[Mode, ...]

    def __call__(self) -> ModeRunner:
        """Load the engines."""
        return ModeRunner(self.config, self.modes)


class ModeRunner:
    """The sessions of one worker.

    Args:
        config: the settings that all modes share.
        modes: those that will be run; the draft alone is loaded only if one of them needs it.
    """

    def __init__(self, config: QualityConfig, modes: Sequence[Mode]) -> None:
        self._config = config
        options = OrtOptions(threads=config.threads)
        self._session = load(config.bundle, options=options, verify=False)
        self._alone = None
        if any(mode.kind == "draft" for mode in modes):
            self._alone = draft_alone(self._session)
        self._graphs = {mode.graph: LearnedArbiter(mode.graph) for mode in modes if mode.graph}
        self._is_warm = False
        self._range: RangeArbiter | None = None
        self._read: _Read | None = None

    def answers(self, job: ModeJob) -> list[Answer]:
        """Return the answer to an item in each of the job's modes.

        The prompt is read once for all modes that read it with the same models, and its time counts
        for each of them. Thresholds of one arbiter at which all decisions are the same share an answer,
        with its time.
        """
        if not self._is_warm:  # buffers of each width are made when it first occurs
            for mode in job.modes:
                sampling = sampling_of(mode, job.task) or SamplingParams()
                self.stream(
                    job.task.prompt, mode, job.task.id, WARM_UP_TOKENS, sampling
                ).completion()
            self._is_warm = True
        limit = self._config.max_tokens or job.task.max_tokens
        answers: dict[str, Answer] = {}
        self._read = None
        for mode in sorted(job.modes, key=_readers):
            if mode.name in answers:
                continue
            answers[mode.name] = answer = self._answer(job.task, mode, limit)
            for other in job.modes:
                if self._decides_alike(mode, other):
                    answers.setdefault(other.name, answer)
        return [answers[mode.name] for mode in job.modes]

    def _decides_alike(self, mode: Mode, other: Mode) -> bool:
        """Whether `other` would decide all mismatches of the last answer as `mode` did."""
        if not (mode.kind == other.kind == "collab" and mode.graph == other.graph):
            return False
        assert self._range is not None
        assert other.threshold is not None
        return self._range.holds(other.threshold)

    def _answer(self, task: Task, mode: Mode, max_tokens: int | None) -> Answer:
        sampling = sampling_of(mode, task) or SamplingParams()
        by = _readers(mode)
        read = self._read if self._read is not None and self._read.by == by else None
        start = perf_counter()
        stream = self.stream(task.prompt, mode, task.id, max_tokens, sampling, forgets=read is None)
        next(stream)
        until_first = perf_counter() - start
        completion = stream.completion()
        seconds = perf_counter() - start
        if read is None:
            read = self._read = _Read(by, until_first)
        seconds += read.seconds - until_first
        stats = completion.stats
        return Answer(
            correct=check(task, completion.text),
            tokens=stats.num_generated_tokens,
            target_passes=stats.num_target_passes,
            seconds=seconds,
            mismatches=stats.num_mismatches,
            overrides=stats.num_overrides,
            truncated=completion.finish_reason in ("length", "capacity"),
        )

    def stream(
        self,
        prompt: Prompt,
        mode: Mode,
        item: str,
        max_tokens: int | None,
        sampling: SamplingParams,
        *,
        forgets: bool = True,
    ) -> Stream:
        """Begin one answer.

        Args:
            prompt: what is answered.
            mode: how.
            item: identifies the prompt to rules that draw.
            max_tokens: longest answer in tokens; None for the bundle's default.
            sampling: of `sampling_of`.
            forgets: read the whole prompt again.
        """
        session = self.session_of(mode)
        if forgets:
            session.forget()
        return session.stream(
            prompt,
            max_tokens=max_tokens,
            num_draft_tokens=0 if mode.is_plain else self._config.num_draft_tokens,
            sampling=sampling,
            mode="collab" if mode.is_judged else "strict",
            threshold=mode.threshold,
            arbiter=self._arbiter(mode, item),
        )

    def session_of(self, mode: Mode) -> Session:
        """Return the session that runs `mode`."""
        session = self._alone if mode.kind == "draft" else self._session
        assert session is not None, "the constructor gets all modes"
        return session

    def _arbiter(self, mode: Mode, item: str) -> Arbiter | None:
        if mode.kind == "collab" and mode.threshold is not None:
            learned = self._session.arbiter if mode.graph is None else self._graphs[mode.graph]
            assert learned is not None, "parse_modes refuses collab without an arbiter"
            self._range = RangeArbiter(learned, mode.threshold)
            return self._range
        if mode.rule is None or not mode.is_judged:
            return None
        if mode.rule.startswith("random:"):
            # A seed for each item: the draws do not depend on which worker runs what, in which order.
            rate, _, seed = mode.rule.removeprefix("random:").partition(",")
            return RandomArbiter(float(rate), f"{seed or 0}/{item}")
        return baseline(mode.rule)


@dataclass(frozen=True)
class _Read:
    """The prompt that the caches hold.

    Attributes:
        by: the models that have read it, from `_readers`.
        seconds: time to the first piece of the answer, which includes the reading.
    """

    by: str
    seconds: float


def _readers(mode: Mode) -> str:
    """Return which models read the prompt in `mode`."""
    if mode.kind == "draft":
        return "draft"
    return "target" if mode.is_plain else "both"


def run_modes_of(runner: ModeRunner, job: ModeJob) -> list[Answer]:
    """Run a job; a plain function, which can be sent to other processes."""
    return runner.answers(job)


def draft_alone(session: Session) -> Session:
    """Return a session that decodes plainly with the draft of `session`.

    Raises:
        UsageError: it has no draft.
    """
    draft = session.engines[1]
    if draft is None:
        raise UsageError("this bundle has no draft, so the mode 'draft' cannot be run")
    return Session(session.manifest, draft, None, session.codec, drafter="none")
