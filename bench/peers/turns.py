"""Rows that take turns: every round runs each row once, and the order rotates.

A machine that slows down slows all rows down, so a ratio of two rows within a round is fair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, Protocol

from .process import Generated, Process, Worker, WorkerError

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Row:
    """One way to decode.

    Attributes:
        name: of the runtime.
        k: tokens to draft per round; 0 for the target alone, `auto` if the runtime chooses.
        setting: what else tells it from rows of the same name and k.
        process: that runs it; None if it is not available.
        reason: why it is not available.
    """

    name: str
    k: int | Literal["auto"]
    setting: str = ""
    process: Process | None = None
    reason: str | None = None

    def __str__(self) -> str:
        mode = "target" if self.k == 0 else f"k={self.k}"
        return " ".join(filter(None, [self.name, mode, self.setting]))


class Generator(Protocol):
    """What the measurement needs of a worker."""

    versions: dict[str, str]

    def generate(self, prompt: Sequence[int], tokens: int, mode: dict[str, Any]) -> Generated:
        """See `Worker.generate`."""

    def close(self) -> None:
        """End it."""


@dataclass
class Samples:
    """What the rounds of one row gave: rates with and without the first token, seconds, tokens."""

    rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)
    peak: int = 0
    error: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


def measure_rows(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    start: Callable[[Process], Generator] = Worker,
    progress: Callable[[Row, Samples], None] = lambda row, samples: None,
) -> list[Samples]:
    """Run every row on every prompt, one round per prompt, and return the samples by row.

    A turn generates one token, which times the first token, and then all of them.

    Args:
        rows: rows without a process are skipped.
        prompts: token ids; all rows of a round get the same prompt.
        tokens: to generate.
        start: makes the worker of a process; every worker lives until the end.
        progress: called after each turn of a row, the warm-up included, with its samples so far.
    """
    samples = [Samples(error=row.reason) for row in rows]
    workers: dict[str, Generator] = {}
    try:
        for number in range(-1, len(prompts)):
            for i in range(len(rows)):
                at = (i + number) % len(rows)
                row, sample = rows[at], samples[at]
                if row.process is None or sample.error is not None:
                    continue
                try:
                    worker = workers.get(row.process.key)
                    if worker is None:
                        worker = workers[row.process.key] = start(row.process)
                    sample.versions = worker.versions
                    if number < 0:
                        worker.generate(prompts[0], min(tokens, WARM_UP_TOKENS), {"k": row.k})
                    else:
                        _turn(row, worker, sample, prompts[number], tokens)
                except WorkerError as error:
                    sample.error = str(error)
                progress(row, sample)
    finally:
        for worker in workers.values():
            worker.close()
    return samples


def _turn(row: Row, worker: Generator, sample: Samples, prompt: Sequence[int], tokens: int) -> None:
    """Generate the first token alone, then all of them."""
    mode = {"k": row.k}
    first = worker.generate(prompt, 1, mode)
    whole = worker.generate(prompt, tokens, mode)
    count = len(whole.tokens)
    sample.first.append(first.seconds)
    sample.rates.append(count / whole.seconds)
    # The difference can be smaller than the clock's noise, and must not be zero.
    rest = max(whole.seconds - first.seconds, 1e-9)
    sample.decode_rates.append((count - 1) / rest)
    sample.outputs.append(whole.tokens)
    sample.peak = max(sample.peak, whole.peak)
    if whole.facts.get("acceptance") is not None:
        sample.acceptance.append(whole.facts["acceptance"])


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Return the median over the rounds of `of` divided by `to` of the same round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def figures(rows: Sequence[Row], samples: Sequence[Samples], ours: str) -> dict[str, Any]:
    """Return the figures of each row, the best row of each runtime, and ours against each peer."""
    listed: list[dict[str, Any]] = []
    for row, sample in zip(rows, samples, strict=True):
        if sample.error is not None or not sample.rates:
            listed.append({"row": str(row), "skipped": sample.error or "no round was finished"})
            continue
        plain = _plain(row, rows, samples)
        listed.append(
            {
                "row": str(row),
                "tokens_per_second": median(sample.rates),
                "decode_tokens_per_second": median(sample.decode_rates),
                "time_to_first_token_ms": 1000 * median(sample.first),
                "peak_memory_bytes": sample.peak,
                "speedup": None if plain is None else paired_ratio(sample.rates, plain.rates),
                "acceptance": median(sample.acceptance) if sample.acceptance else None,
                "equal_to_own_target": None if plain is None else sample.outputs == plain.outputs,
                "tokens_per_second_by_round": sample.rates,
                "versions": sample.versions,
            }
        )
    best: dict[str, int] = {}
    for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        if sample.rates and sample.error is None:
            so_far = best.get(row.name)
            if so_far is None or median(sample.rates) > median(samples[so_far].rates):
                best[row.name] = i
    ratios = {
        name: {
            "ours": str(rows[best[ours]]),
            "theirs": str(rows[i]),
            "tokens_per_second": paired_ratio(samples[best[ours]].rates, samples[i].rates),
            "time_to_first_token": paired_ratio(samples[best[ours]].first, samples[i].first),
        }
        for name, i in best.items()
        if ours in best and name != ours
    }
    return {"rows": listed, "best": {n: str(rows[i]) for n, i in best.items()}, "ratios": ratios}


def _plain(row: Row, rows: Sequence[Row], samples: Sequence[Samples]) -> Samples | None:
    """Return the target-only samples of the same runtime and setting."""
    for other, sample in zip(rows, samples, strict=True):
        if (other.name, other.setting, other.k) == (row.name, row.setting, 0) and sample.rates:
            return sample
    return None
