"""Tokens per second of one bundle: the target alone, each draft length, `auto` and collab, in turns.

Every round runs each row once on the round's prompt, and the order rotates, so a machine that slows
down slows all rows down. Ratios are medians over the rounds of ratios within a round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import click

from ...errors import UsageError
from ...runtime.arbitration.referee import Referee
from ...runtime.cli.common import (
    CospecCommand,
    at_least,
    engine_dir_option,
    json_option,
    print_json,
)
from ...runtime.cli.engine_settings import EngineSettings, engine_options
from ...runtime.decoding.session import Session
from ..tables import text_table
from .machine_facts import machine_facts

PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain how a heat pump works, and why it delivers more heat than the power it takes.",
    "A train leaves at 9:40 and arrives at 13:05. It stops for 25 minutes. How long does it move?",
)
LENGTHS = "1,2,3,4,6,8,auto"
COLLAB = "collab"

EPILOG = """
\b
Examples:
  cospec-bench speed --engine-dir models/tiny
  cospec-bench speed --engine-dir bundles/mine --draft-lengths 2,4,auto --rounds 7 --json
  cospec-bench speed --engine-dir bundles/mine --contexts 128,1024,4096 --draft-lengths 3

Comparing with other runtimes needs a checkout of the repository: python -m bench.peers --help
"""


@dataclass
class Row:
    """One way to decode, and what its turns gave.

    Attributes:
        length: tokens to draft per round: 0 for the target alone, a number, `auto`, or `collab`.
        rates: tokens per second of each round, prompt included.
        decode_rates: the same without the time to the first token.
        first: seconds to the first token of each round.
        outputs: tokens of each round.
        acceptance: share of the drafted tokens that were accepted, each round.
    """

    length: int | str
    rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The row's name in tables."""
        if self.length == 0:
            return "target"
        return COLLAB if self.length == COLLAB else f"strict k={self.length}"

    def run(self, session: Session, prompt: Sequence[int], tokens: int) -> None:
        """Take one turn: read the prompt from its first token and generate."""
        session.forget()
        length: Any = None if self.length == COLLAB else self.length
        referee = referee_of(session) if self.length == COLLAB else None
        started = perf_counter()
        stream = session.continue_tokens(
            prompt, referee, max_tokens=tokens, num_draft_tokens=length
        )
        head = len(next(stream).tokens)
        first = perf_counter() - started
        done = stream.completion()
        seconds = perf_counter() - started
        self.first.append(first)
        self.rates.append(len(done.tokens) / seconds)
        if len(done.tokens) > head:
            self.decode_rates.append((len(done.tokens) - head) / (seconds - first))
        self.outputs.append(list(done.tokens))
        if done.stats.draft_acceptance_rate is not None:
            self.acceptance.append(done.stats.draft_acceptance_rate)

    def figures(self, plain: Row) -> dict[str, Any]:
        """Return the medians, and the ratio to the target alone."""
        ratios = [a / b for a, b in zip(self.rates, plain.rates, strict=True)]
        return {
            "mode": self.name,
            "tokens_per_second": median(self.rates),
            "decode_tokens_per_second": median(self.decode_rates) if self.decode_rates else None,
            "time_to_first_token_ms": 1000 * median(self.first),
            "speedup": median(ratios),
            "acceptance": median(self.acceptance) if self.acceptance else None,
            "equal_to_target": self.outputs == plain.outputs,
            "tokens_per_second_by_round": self.rates,
        }


def referee_of(session: Session) -> Referee:
    """Return what decides in collab mode, at the bundle's own threshold."""
    entry = session.manifest.models.arbiter
    if session.arbiter is None or entry is None:
        raise UsageError("this bundle has no arbiter", hint="cospec-calibrate arbiter trains one")
    return Referee(session.arbiter, entry.threshold, session.protected_tokens)


def measure(
    session: Session,
    lengths: Sequence[int | str],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return the figures of each row; the target alone comes first.

    Args:
        session: of the bundle.
        lengths: see `Row.length`; 0 is added.
        prompts: token ids, one prompt per round.
        tokens: to generate at most.
        progress: called after each turn.
    """
    rows = [Row(length) for length in dict.fromkeys([0, *lengths])]
    for row in rows:  # the first use of each width allocates its buffers
        Row(row.length).run(session, prompts[0], min(tokens, 16))
        progress()
    for number, prompt in enumerate(prompts):
        for i in range(len(rows)):
            rows[(i + number) % len(rows)].run(session, prompt, tokens)
            progress()
    return [row.figures(rows[0]) for row in rows]


@click.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option("--prompt", "texts", multiple=True, help="Prompt text; several take turns.")
@click.option("--contexts", help="Prompt lengths in tokens instead, separated by commas.")
@click.option("--tokens", type=int, default=64, show_default=True, help="Tokens to generate.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each row.")
@click.option(
    "--draft-lengths",
    default=LENGTHS,
    show_default=True,
    help="Tokens to draft per round, separated by commas; auto lets the controller choose.",
)
@engine_options
@json_option
def speed(
    engine_dir: Any,
    texts: tuple[str, ...],
    contexts: str | None,
    tokens: int,
    rounds: int,
    draft_lengths: str,
    engines: EngineSettings,
    as_json: bool,
) -> None:
    """Time one bundle: the target alone, every draft length, and collab if it has an arbiter."""
    import sys

    from tqdm import tqdm

    at_least("--tokens", tokens, 2)
    at_least("--rounds", rounds, 1)
    if contexts and texts:
        raise UsageError("give either --prompt or --contexts")
    lengths = parse_lengths(draft_lengths)
    session = engines.load(engine_dir)
    if session.manifest.models.arbiter is not None:
        lengths.append(COLLAB)
    asked = [session.encode(text) for text in texts or PROMPTS]
    sets: dict[str, list[list[int]]] = {
        "prompts": [asked[i % len(asked)] for i in range(rounds)],
    }
    if contexts:
        sets = {
            str(size): [_of_length(asked[i % len(asked)], size) for i in range(rounds)]
            for size in _sizes(contexts, session.manifest.capacity - tokens)
        }
    load_before = os.getloadavg()[0]
    turns = len(sets) * (rounds + 1) * len(dict.fromkeys([0, *lengths]))
    with tqdm(total=turns, unit="turn", disable=not sys.stderr.isatty()) as bar:
        results = {
            name: measure(session, lengths, prompts, tokens, lambda: bar.update() and None)
            for name, prompts in sets.items()
        }
    result = {
        "bundle": session.manifest.name,
        "rows": results["prompts"] if not contexts else None,
        "contexts": results if contexts else None,
        "environment": machine_facts()
        | {"tokens": tokens, "rounds": rounds, "load_before": load_before},
    }
    if as_json:
        print_json({key: value for key, value in result.items() if value is not None})
        return
    for name, rows in results.items():
        if contexts:
            click.echo(f"after a context of {name} tokens")
        click.echo(as_table(rows))


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as aligned text."""
    cells = [["mode", "tok/s", "decode", "first ms", "speed-up", "accepted", "same text"]]
    for row in rows:
        decode, accepted = row["decode_tokens_per_second"], row["acceptance"]
        cells.append(
            [
                row["mode"],
                f"{row['tokens_per_second']:.1f}",
                "-" if decode is None else f"{decode:.1f}",
                f"{row['time_to_first_token_ms']:.0f}",
                f"{row['speedup']:.2f}",
                "-" if accepted is None else f"{accepted:.0%}",
                "yes" if row["equal_to_target"] else "no",
            ]
        )
    return "\n".join(text_table(cells, right=range(1, len(cells[0]))))


def parse_lengths(text: str) -> list[int | str]:
    """Return draft lengths that are separated by commas.

    Raises:
        UsageError: one is neither a positive number nor `auto`.
    """
    lengths: list[int | str] = []
    for word in (part.strip() for part in text.split(",")):
        if word != "auto" and not (word.isdecimal() and int(word) > 0):
            raise UsageError(f"--draft-lengths: '{word}' is neither auto nor a positive number")
        lengths.append(word if word == "auto" else int(word))
    return lengths


def _sizes(text: str, longest: int) -> list[int]:
    """Return context lengths that fit the bundle."""
    sizes = []
    for word in (part.strip() for part in text.split(",")):
        if not word.isdecimal() or not 2 <= int(word) <= longest:
            raise UsageError(f"--contexts: '{word}' is not a number from 2 to {longest}")
        sizes.append(int(word))
    return sizes


def _of_length(tokens: Sequence[int], size: int) -> list[int]:
    """Return `tokens`, repeated and cut to `size`."""
    return [tokens[i % len(tokens)] for i in range(size)]
