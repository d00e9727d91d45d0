"""Rows that take turns: every round plays each row once, and the order rotates.

So a machine that slows down slows all rows down, and a ratio of two rows is one of neighbours in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal, Protocol

from .remote import Generated, Process, Worker, WorkerError

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Row:
    """One way to decode.

    Attributes:
        name: of the runtime.
        format: of the weights; see `formats.PairFormat`. Of the target alone it is the target's.
        k: tokens to draft a round; 0 for the target alone, `auto` where the runtime chooses.
        setting: what else sets it apart from rows of the same name, format and k.
        process: that runs it; None where it cannot be had.
        reason: why it cannot be had.
    """

    name: str
    format: str
    k: int | Literal["auto"]
    setting: str = ""
    process: Process | None = None
    reason: str | None = None

    @property
    def mode(self) -> str:
        """`target`, `speculative k=3`, `speculative auto`."""
        if self.k == 0:
            return "target"
        return "speculative auto" if self.k == "auto" else f"speculative k={self.k}"


class Generator(Protocol):
    """What measuring needs of a worker."""

    versions: dict[str, str]

    def generate(self, prompt: Sequence[int], tokens: int, mode: dict[str, Any]) -> Generated:
        """See `Worker.generate`."""

    def close(self) -> None:
        """End it."""


@dataclass
class Samples:
    """What the rounds of one row gave.

    Attributes:
        rates: tokens a second of each round, prompt and all.
        decode_rates: the same without the time to the first token.
        first: seconds to the first token, by round.
        outputs: tokens by round.
        peak: bytes.
        facts: of the last generation, by round.
        error: why it stopped, or None.
        versions: of the runtime's packages.
    """

    rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    peak: int = 0
    facts: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


def measure_rows(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    start: Callable[[Process], Generator] = Worker,
    before_round: Callable[[], None] = lambda: None,
    played: Callable[[Row], None] = lambda row: None,
    *,
    reading_once: bool = False,
) -> list[Samples]:
    """Play every row on every prompt, one round a prompt, and return the samples by row.

    Args:
        rows: rows without a process are not played.
        prompts: token ids; all rows of a round get the same.
        tokens: to generate.
        start: makes the worker of a process; every worker lives until the end.
        before_round: called before each round, for what is measured beside.
        played: called after each turn of a row, the warm-up included.
        reading_once: for long prompts: warm up on the beginning of one, and take the time to the first
            token from the one generation of a turn; its worker tells it.
    """
    warm_up = prompts[0][:WARM_UP_TOKENS] if reading_once else prompts[0]
    samples = [Samples(error=row.reason) for row in rows]
    workers: dict[str, Generator] = {}
    try:
        for row, sample in zip(rows, samples, strict=True):
            if row.process is not None:
                _warm_up(row, row.process, sample, workers, warm_up, tokens, start)
                played(row)
        for number, prompt in enumerate(prompts):
            before_round()
            for i in turns(len(rows), number):
                row, sample = rows[i], samples[i]
                if row.process is not None and sample.error is None:
                    worker = workers[row.process.key]
                    _play(row, worker, sample, prompt, tokens, reading_once=reading_once)
                    played(row)
    finally:
        for worker in workers.values():
            worker.close()
    return samples


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Return rows without those that equal an earlier one in all but their process.

    The target alone is the same row whatever the draft's format.
    """
    found: dict[Row, Row] = {}
    for row in rows:
        found.setdefault(replace(row, process=None), row)
    return list(found.values())


def turns(count: int, number: int) -> list[int]:
    """Return the order of `count` rows in round `number`."""
    return [(i + number) % count for i in range(count)]


def _warm_up(
    row: Row,
    process: Process,
    sample: Samples,
    workers: dict[str, Generator],
    prompt: Sequence[int],
    tokens: int,
    start: Callable[[Process], Generator],
) -> None:
    """Start the row's worker unless it runs, and generate a little."""
    try:
        if process.key not in workers:
            workers[process.key] = start(process)
        sample.versions = workers[process.key].versions
        workers[process.key].generate(prompt, min(tokens, WARM_UP_TOKENS), {"k": row.k})
    except WorkerError as error:
        sample.error = str(error)


def _play(
    row: Row,
    worker: Generator,
    sample: Samples,
    prompt: Sequence[int],
    tokens: int,
    *,
    reading_once: bool,
) -> None:
    """One turn: the first token by itself, unless the worker tells its time; then all of them."""
    mode = {"k": row.k}
    try:
        alone = None if reading_once else (worker.generate(prompt, 1, mode).seconds, 1)
        whole = worker.generate(prompt, tokens, mode)
    except WorkerError as error:
        sample.error = str(error)
        return
    first = alone or whole.first
    assert first is not None, f"the worker of {row.name} does not tell when tokens came first"
    first_seconds, first_tokens = first
    count = len(whole.tokens)
    sample.first.append(first_seconds)
    sample.rates.append(count / whole.seconds)
    # A pass that is shorter than the noise of the clock's would be no time at all.
    rest = max(whole.seconds - first_seconds, 1e-9)
    sample.decode_rates.append((count - first_tokens) / rest)
    sample.outputs.append(whole.tokens)
    sample.facts.append(whole.facts)
    sample.peak = max(sample.peak, whole.peak)


def common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return how many tokens two outputs begin with in common."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return i
    return min(len(ours), len(theirs))


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median over the rounds of `of` divided by `to` of the same round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def merged_facts(facts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each number over the rounds that tell it."""
    names = {name for each in facts for name, value in each.items() if value is not None}
    return {
        name: sum(each[name] for each in told) / len(told)
        for name in sorted(names)
        if (told := [each for each in facts if each.get(name) is not None])
    }
