"""Measure the tiny pair on held-out problems: `python -m cospec.models.tiny_pair.evaluate`.

Accuracy of each model and of the better of the two answers (the headroom of an arbiter), how many
drafted tokens strict speculative decoding would accept, and how many mismatches are harmless: put
the draft's token in place of the target's, let the target finish, and see whether the answer is
still right.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from . import path
from .tasks import KINDS, Problem, Split, distinct, is_correct, prompt, seeded

_BATCH = 256
_NEW_TOKENS = 96

TokenIds = list[int]


@dataclass(frozen=True)
class Mismatch:
    """A position of the target's greedy answer at which the draft would write something else."""

    position: int
    before: str
    target: str
    draft: str
    # Whether the target still gets it right after the draft's token; None: not tried out.
    harmless: bool | None = None

    @property
    def sort(self) -> str:
        """`wording` (neither token has a digit), `number` (both have) or `mixed`."""
        digits = sum(any(c.isdigit() for c in token) for token in (self.target, self.draft))
        return ("wording", "mixed", "number")[digits]


@dataclass(frozen=True)
class Outcome:
    """What happened on one problem.

    length: tokens of the target's greedy answer. tried: one mismatch at random, played out, where
    the target was right.
    """

    kind: str
    target_right: bool
    draft_right: bool
    length: int
    mismatches: tuple[Mismatch, ...]
    tried: Mismatch | None


@dataclass(frozen=True)
class Row:
    """Shares, 0 to 1, over n problems of one kind.

    acceptance: drafted tokens that equal the target's. harmless: of the mismatches tried out.
    wording: mismatches between two tokens without a digit, of all mismatches.
    """

    kind: str
    n: int
    target: float
    draft: float
    either: float
    draft_only: float
    acceptance: float
    harmless: float
    wording: float


def summarise(kind: str, outcomes: Sequence[Outcome]) -> Row:
    """Reduce outcomes to one row; a share of nothing is 0."""
    n = max(1, len(outcomes))
    mismatches = [m for o in outcomes for m in o.mismatches]
    tried = [o.tried.harmless for o in outcomes if o.tried]
    return Row(
        kind=kind,
        n=len(outcomes),
        target=sum(o.target_right for o in outcomes) / n,
        draft=sum(o.draft_right for o in outcomes) / n,
        either=sum(o.target_right or o.draft_right for o in outcomes) / n,
        draft_only=sum(o.draft_right and not o.target_right for o in outcomes) / n,
        acceptance=1 - len(mismatches) / max(1, sum(o.length for o in outcomes)),
        harmless=sum(map(bool, tried)) / max(1, len(tried)),
        wording=sum(m.sort == "wording" for m in mismatches) / max(1, len(mismatches)),
    )


class Pair:
    """Both models with their common tokenizer."""

    def __init__(self, draft: Path, target: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(target)
        self.draft = AutoModelForCausalLM.from_pretrained(draft).eval()
        self.target = AutoModelForCausalLM.from_pretrained(target).eval()

    def encode(self, problem: Problem) -> TokenIds:
        """Return the prompt's tokens, with beginning of sequence."""
        ids: TokenIds = self.tokenizer(prompt(problem)).input_ids
        return ids

    def decode(self, ids: TokenIds) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def greedy(self, model: Any, prefixes: Sequence[TokenIds]) -> list[TokenIds]:
        """Continue each prefix greedily, up to and including end of sequence."""
        eos = self.tokenizer.eos_token_id
        results: list[TokenIds] = [[] for _ in prefixes]
        order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i]))
        for start in range(0, len(order), _BATCH):
            chunk = order[start : start + _BATCH]
            padded = self.tokenizer.pad(
                {"input_ids": [prefixes[i] for i in chunk]}, return_tensors="pt"
            )
            out = model.generate(**padded, max_new_tokens=_NEW_TOKENS, do_sample=False)
            for i, row in zip(chunk, out[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
                results[i] = row[: row.index(eos) + 1] if eos in row else row
        return results

    def draft_choices(
        self, prefixes: Sequence[TokenIds], answers: Sequence[TokenIds]
    ) -> list[TokenIds]:
        """Return the draft's greedy token at each position of each answer, given the rest."""
        choices: list[TokenIds] = []
        pairs = list(zip(prefixes, answers, strict=True))
        for start in range(0, len(pairs), _BATCH):
            chunk = pairs[start : start + _BATCH]
            length = max(len(prefix) + len(answer) for prefix, answer in chunk)
            tokens = torch.full((len(chunk), length), self.tokenizer.pad_token_id)
            for i, (prefix, answer) in enumerate(chunk):
                tokens[i, : len(prefix) + len(answer)] = torch.tensor(prefix + answer)
            with torch.inference_mode():
                best = self.draft(input_ids=tokens).logits.argmax(-1).tolist()
            for row, (prefix, answer) in zip(best, chunk, strict=True):
                begin = len(prefix) - 1
                choices.append(row[begin : begin + len(answer)])
        return choices

    def evaluate(self, problems: Sequence[Problem], seed: int = 0) -> list[Outcome]:
        """Measure the pair on the problems; seed picks the one mismatch tried out in each."""
        prefixes = [self.encode(problem) for problem in problems]
        answers = self.greedy(self.target, prefixes)
        drafted = self.greedy(self.draft, prefixes)
        choices = self.draft_choices(prefixes, answers)
        rng = seeded("mismatch", seed)
        outcomes, branches = [], []
        for i, problem in enumerate(problems):
            mismatches = self._mismatches(answers[i], choices[i])
            right = is_correct(problem, self.decode(answers[i]))
            tried = rng.choice(mismatches) if right and mismatches else None
            outcomes.append(
                Outcome(
                    problem.kind,
                    right,
                    is_correct(problem, self.decode(drafted[i])),
                    len(answers[i]),
                    mismatches,
                    tried,
                )
            )
            at = tried.position if tried else 0
            branches.append(prefixes[i] + answers[i][:at] + [choices[i][at]])
        return self._try_out(problems, outcomes, prefixes, branches)

    def _mismatches(self, answer: TokenIds, choices: TokenIds) -> tuple[Mismatch, ...]:
        name = self.tokenizer.convert_ids_to_tokens
        return tuple(
            Mismatch(at, self.decode(answer[:at]), name(wanted), name(got))
            for at, (wanted, got) in enumerate(zip(answer, choices, strict=True))
            if wanted != got
        )

    def _try_out(
        self,
        problems: Sequence[Problem],
        outcomes: list[Outcome],
        prefixes: Sequence[TokenIds],
        branches: Sequence[TokenIds],
    ) -> list[Outcome]:
        """Let the target finish after the drafted token of each mismatch to be tried."""
        tried = [i for i, outcome in enumerate(outcomes) if outcome.tried]
        finished = self.greedy(self.target, [branches[i] for i in tried])
        for i, more in zip(tried, finished, strict=True):
            mismatch = outcomes[i].tried
            if mismatch is None:
                continue
            # After a drafted end of sequence nothing more is written.
            ended = branches[i][-1] == self.tokenizer.eos_token_id
            text = self.decode(branches[i][len(prefixes[i]) :] + ([] if ended else more))
            harmless = is_correct(problems[i], text)
            outcomes[i] = replace(outcomes[i], tried=replace(mismatch, harmless=harmless))
        return outcomes


def table(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table, shares in per cent."""
    names = [name for name in asdict(rows[0]) if name not in ("kind", "n")]
    lines = [
        f"| kind | n | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    for row in rows:
        shares = (f"{100 * getattr(row, name):.1f}" for name in names)
        lines.append(f"| {row.kind} | {row.n} | {' | '.join(shares)} |")
    return "\n".join(lines)


@click.command()
@click.option("-n", "--problems", "n", type=click.IntRange(1, 2800), default=2000)
@click.option("--split", type=click.Choice(["validation", "test"]), default="test")
@click.option("--seed", default=0)
@click.option("--draft", type=click.Path(exists=True, path_type=Path), default=path("draft"))
@click.option("--target", type=click.Path(exists=True, path_type=Path), default=path("target"))
@click.option("--threads", type=click.IntRange(1), default=1, help="CPU threads.")
@click.option("--examples", type=click.IntRange(0), default=0, help="Mismatches to print.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(
    n: int,
    split: Split,
    seed: int,
    draft: Path,
    target: Path,
    threads: int,
    examples: int,
    as_json: bool,
) -> None:
    """Measure the tiny pair on n distinct held-out problems, equally many of each kind."""
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    outcomes = Pair(draft, target).evaluate(distinct(split, seed, n), seed)
    rows = [summarise(k, [o for o in outcomes if o.kind == k]) for k in KINDS]
    rows.append(summarise("all", outcomes))
    tried = [outcome.tried for outcome in outcomes if outcome.tried][:examples]
    if as_json:
        found = [{"sort": mismatch.sort, **asdict(mismatch)} for mismatch in tried]
        click.echo(json.dumps({"rows": [asdict(row) for row in rows], "examples": found}, indent=2))
        return
    click.echo(table(rows))
    for m in tried:
        verdict = "harmless" if m.harmless else "harmful"
        click.echo(f"{m.sort:8}{verdict:9}{m.before!r}  target {m.target!r}  draft {m.draft!r}")


if __name__ == "__main__":
    main()
