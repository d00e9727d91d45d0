"""The work of one worker for lm-evaluation-harness: answering prompts, and scoring continuations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...runtime.engines.protocol import Decoder
from ...runtime.sampling.params import SamplingParams
from ..journal import digest
from ..weights.fidelity import OUTPUTS, read_text
from ..weights.texts import Text
from .mode_runner import ModeRunner, QualityConfig
from .modes import Mode


@dataclass(frozen=True)
class GenerateJob:
    """One prompt to answer, as token ids."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams


@dataclass(frozen=True)
class ScoreJob:
    """Continuations of one context to score, as token ids. The context has at least one token."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


class LmEvalRunner(ModeRunner):
    """The engines of one worker."""

    def __init__(self, config: QualityConfig, mode: Mode) -> None:
        super().__init__(config, [mode])
        self._mode = mode
        self._decoder: Decoder | None = None

    def text(self, job: GenerateJob) -> str:
        """Return the answer to a prompt, decoded on its own, without the space before it."""
        item = digest(repr(job.prompt))
        done = self.stream(job.prompt, self._mode, item, job.max_tokens, job.sampling).completion()
        codec = self.session_of(self._mode).codec
        if done.text.startswith(" ") and not codec.decode(done.tokens).startswith(" "):
            return done.text[1:]  # a tokenizer that writes spaces as part of words
        return done.text

    def scores(self, job: ScoreJob) -> list[tuple[float, bool]]:
        """Return for each continuation its log-probability in nats, and whether it is greedy."""
        session = self.session_of(self._mode)
        if self._decoder is None:
            self._decoder = session.engines[0].decoder(OUTPUTS)
        chunk = max(2, session.manifest.generation.prefill_chunk)
        start = len(job.context)
        self._decoder.truncate(0)
        found = []
        for continuation in job.continuations:
            text = Text((*job.context, *continuation), start)
            passes = read_text(self._decoder, text, chunk, chunk)
            logprob = sum(float(logprobs.sum(dtype="float64")) for logprobs, _ in passes)
            chosen = [int(token) for _, tokens in passes for token in tokens]
            found.append((logprob, chosen == list(continuation)))
            self._decoder.truncate(start - 1)  # the context is read once
        return found


@dataclass(frozen=True)
class LmEvalSetup:
    """Makes a worker's runner; picklable."""

    config: QualityConfig
    mode: Mode

    def __call__(self) -> LmEvalRunner:
        """Load the engines."""
        return LmEvalRunner(self.config, self.mode)


def run_job(runner: LmEvalRunner, job: GenerateJob | ScoreJob) -> Any:
    """Run a job; a plain function, which can be sent to other processes."""
    return runner.text(job) if isinstance(job, GenerateJob) else runner.scores(job)
