"""Word problems as tasks that ask for short working, or for reasoning in words.

    python -m bench.real_pair.word_problems --problems gsm8k_test.jsonl --output test.jsonl
    python -m bench.real_pair.word_problems --problems train.jsonl --output tasks.jsonl --unseen-by LORA

The tasks are for `cospec-bench quality` and `cospec-calibrate arbiter`. An arbiter must not learn
from problems that the draft was trained on: there the draft is better than it will ever be again.
"""

from __future__ import annotations

from pathlib import Path

import click

from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.jsonl import write_tasks
from cospec.runtime.cli.common import CospecCommand

from .short_working import EXAMPLE, IN_WORDS, SYSTEM, Problem, read_problems
from .train_draft import trained_on

SHORT = (SYSTEM + EXAMPLE, 200)
LONG = (IN_WORDS, 500)
"""An instruction, and the longest answer to it in tokens."""


@click.command(cls=CospecCommand)
@click.option(
    "--problems",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="GSM8K's file, or MultiArith's.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Task file.")
@click.option(
    "--unseen-by",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Leave out what this adapter was trained on.",
)
@click.option(
    "--most-steps",
    type=click.IntRange(min=1),
    help="Leave out what takes more calculations. An arbiter learns little from problems that "
    "neither model can solve.",
)
@click.option(
    "--in-words",
    is_flag=True,
    help="Ask for reasoning in words instead: long answers.",
)
def main(
    problems: Path, output: Path, unseen_by: Path | None, most_steps: int | None, in_words: bool
) -> None:
    """Write word problems as tasks that ask for short working, or for reasoning in words."""
    found = read_problems(problems)
    seen = set() if unseen_by is None else trained_on(unseen_by, found)
    if most_steps is not None:
        found = [each for each in found if each.steps and each.steps <= most_steps]
    form = LONG if in_words else SHORT
    tasks = [_task(problems.stem, each, *form) for each in found if each.number not in seen]
    write_tasks(tasks, output)
    click.echo(f"{output}: {len(tasks)} tasks")


def _task(name: str, problem: Problem, instruction: str, max_tokens: int) -> Task:
    return Task(
        f"{name}-{problem.number}",
        problem.messages(instruction),
        CheckerSpec("number"),
        problem.answer,
        max_tokens=max_tokens,
        solution=problem.working,
    )


if __name__ == "__main__":
    main()
