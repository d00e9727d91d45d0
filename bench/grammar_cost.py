"""What a grammar costs and what speculation gains under it, on prompts that extract data as JSON.

Each prompt is answered with and without the schema as a grammar, by the target alone, with the draft,
and with the tokens that the grammar forces as the only draft. The ways take turns on one session's
engines. Masks and all work on logits are timed inside the decode rounds.

    .venv/bin/python -m bench.grammar_cost --engine-dir bundles/mine
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click

from cospec.calibration.tables import text_table
from cospec.runtime.decoding.session import Session, load
from cospec.runtime.engines.onnxruntime import OrtOptions
from cospec.runtime.sampling.grammar import GrammarState
from cospec.runtime.sampling.sampler import Sampler

PROMPTS = Path(__file__).with_name("extraction.json")


@dataclass(frozen=True)
class Way:
    """A way to answer.

    Attributes:
        name: in the table.
        grammar: whether the schema is a grammar.
        drafter: name of the session's drafter.
        length: draft tokens per round.
    """

    name: str
    grammar: bool
    drafter: str
    length: int


@dataclass(frozen=True)
class Run:
    """One answer.

    Attributes:
        rate: tokens per second of the decode rounds, without the first.
        tokens: of the output.
        passes: of the target.
        masks: number of masks that were computed.
        mask_seconds: that they took.
        sampling_seconds: all work on logits, masks included.
        seconds: of the decode rounds.
        forced: tokens that the grammar left no choice for.
        right: share of the fields that have the expected value.
        text: of the output.
    """

    rate: float
    tokens: int
    passes: int
    masks: int
    mask_seconds: float
    sampling_seconds: float
    seconds: float
    forced: int
    right: float
    text: str


class Clock:
    """Adds up the time within some methods, outermost calls only."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._depth = 0

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method that is timed."""

        def call(*arguments: Any, **options: Any) -> Any:
            self._depth += 1
            started = perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += perf_counter() - started
                    self.calls += 1

        return call


@contextmanager
def timing(clock: Clock, kind: type, names: tuple[str, ...]) -> Iterator[None]:
    """Time methods of a class."""
    before = {name: getattr(kind, name) for name in names}
    for name, method in before.items():
        setattr(kind, name, clock.timed(method))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(kind, name, method)


def answer(
    session: Session, way: Way, item: dict[str, Any], schema: dict[str, Any], most: int
) -> Run:
    """Answer one prompt in one way."""
    question = (
        f"Extract the data as JSON that follows this schema, and write nothing else:\n"
        f"{json.dumps(schema)}\n\n{item['text']}"
    )
    options: dict[str, Any] = {"json_schema": schema} if way.grammar else {}
    masks, sampling = Clock(), Clock()
    with (
        timing(masks, GrammarState, ("_mask", "forced")),
        timing(sampling, Sampler, ("verify", "choose", "constrain", "forced")),
    ):
        done = session.generate(
            [{"role": "user", "content": question}],
            max_tokens=most,
            num_draft_tokens=way.length,
            greedy=True,
            **options,
        )
    stats = done.stats
    return Run(
        (len(done.tokens) - stats.first_round_tokens) / stats.decode_seconds,
        len(done.tokens),
        stats.num_target_passes,
        masks.calls,
        masks.seconds,
        sampling.seconds,
        stats.decode_seconds,
        _forced(session, schema, done.tokens) if way.grammar else 0,
        _right(done.text, item["answer"]),
        done.text,
    )


def _forced(session: Session, schema: dict[str, Any], tokens: Sequence[int]) -> int:
    """Return how many tokens of an output were the grammar's, not the model's."""
    plan = session.plan("x", json_schema=schema)
    assert plan.sampler is not None
    written = [*plan.tokens]
    left = ahead = 0
    forced: list[int] = []
    for token in tokens:
        if not forced:
            forced = plan.sampler.forced(written, [])
        if forced and forced[0] == token:
            left, forced = left + 1, forced[1:]
        else:
            ahead, forced = ahead + 1, []
        written.append(token)
    return left


def _right(text: str, expected: dict[str, Any]) -> float:
    try:
        found = json.loads(text.removeprefix("```json").strip("`\n "))
    except ValueError:
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    same = [
        str(found.get(name)).casefold() == str(value).casefold() for name, value in expected.items()
    ]
    return sum(same) / len(same)


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path), required=True)
@click.option("--num-draft-tokens", default=3, show_default=True)
@click.option("--tokens", default=128, show_default=True, help="Most tokens of an answer.")
@click.option("--repeats", default=1, show_default=True, help="Answers of each prompt and way.")
@click.option("--threads", default=2, show_default=True, help="Threads per forward pass.")
@click.option("--prompts", default=PROMPTS, type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def main(
    engine_dir: Path,
    num_draft_tokens: int,
    tokens: int,
    repeats: int,
    threads: int,
    prompts: Path,
    as_json: bool,
) -> None:
    """Print tokens per second, cost of masks and share of forced tokens; medians over the prompts."""
    k = num_draft_tokens
    ways = [
        Way("free, alone", False, "none", 0),
        Way("free, draft", False, "auto", k),
        Way("grammar, alone", True, "none", 0),
        Way("grammar, draft", True, "auto", k),
        Way("grammar, forced tokens only", True, "none", 8),
    ]
    drafting = load(engine_dir, options=OrtOptions(threads=threads))
    alone = Session(drafting.manifest, *drafting.engines, drafting.codec, drafter="none")
    given = json.loads(prompts.read_text(encoding="utf-8"))
    runs: dict[str, list[Run]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeats):
        for i, item in enumerate(given["items"]):
            found: dict[str, Run] = {}
            schema = given["schemas"][item["schema"]]
            for session in (drafting, alone):  # reads the prompt
                session.generate("x", json_schema={"type": "boolean"})
            first = (i + turn) % len(ways)
            for way in ways[first:] + ways[:first]:
                session = drafting if way.drafter == "auto" else alone
                found[way.name] = answer(session, way, item, schema, tokens)
            for way in ways:
                runs[way.name].append(found[way.name])
                base = found["grammar, alone" if way.grammar else "free, alone"]
                ratios[way.name].append(found[way.name].rate / base.rate)
            same = {found[way.name].text for way in ways if way.grammar}
            if len(same) > 1:
                click.echo(f"outputs differ under the grammar: {same}", err=True)
    figures = {way.name: _figures(runs[way.name], ratios[way.name]) for way in ways}
    if as_json:
        click.echo(json.dumps({"k": k, "threads": threads, "ways": figures}))
        return
    rows = [["", *next(iter(figures.values()))]]
    rows += [[name, *(f"{value:.3g}" for value in row.values())] for name, row in figures.items()]
    click.echo("\n".join(text_table(rows, right=range(1, len(rows[0])))))


def _figures(runs: list[Run], ratios: list[float]) -> dict[str, float]:
    tokens = sum(run.tokens for run in runs)
    seconds = sum(run.seconds for run in runs)
    return {
        "tokens/s": median(run.rate for run in runs),
        "speed-up": median(ratios),
        "tokens": median(run.tokens for run in runs),
        "tokens/pass": tokens / sum(run.passes for run in runs),
        "us/mask": 1e6 * sum(r.mask_seconds for r in runs) / max(1, sum(r.masks for r in runs)),
        "mask us/token": 1e6 * sum(run.mask_seconds for run in runs) / tokens,
        "mask share": sum(run.mask_seconds for run in runs) / seconds,
        "sampling share": sum(run.sampling_seconds for run in runs) / seconds,
        "forced": sum(run.forced for run in runs) / tokens,
        "right": sum(run.right for run in runs) / len(runs),
    }


if __name__ == "__main__":
    main()
