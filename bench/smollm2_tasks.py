"""Task files on which a model of 135M parameters is sometimes right: worked examples in front.

Asked for a solution step by step, SmolLM2-135M-Instruct rambles on for a hundred tokens and more. With
two worked examples as earlier turns of the chat it answers in two short lines. This writes such task
files, disjoint, from any benchmark file whose answers are numbers:

    .venv/bin/python -m bench.smollm2_tasks --source multiarith:multiarith.jsonl --output .cache/tasks \
        --part train=60 --part validation=60 --part test=100
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import click

from cospec.calibration.tasks import Task, resolve_tasks, write_tasks
from cospec.calibration.tasks.benchmarks import ARITHMETIC_PROMPT
from cospec.calibration.tasks.item import Message

WORKED = (
    (
        "Tom had 12 apples and bought 7 more. He gave 5 away. How many apples does he have left?",
        "12 + 7 = 19. 19 - 5 = 14.\nAnswer: 14",
    ),
    (
        "A shop sold 4 boxes with 6 pens each and 3 single pens. How many pens did it sell?",
        "4 * 6 = 24. 24 + 3 = 27.\nAnswer: 27",
    ),
)
MAX_TOKENS = 64
"""Longest answer. The worked ones take about 25 tokens."""


def with_worked_examples(task: Task) -> Task:
    """Return the task with the worked examples as turns in front of its own, and a short limit.

    Raises:
        click.ClickException: the prompt is no chat, or the answer is no number.
    """
    if isinstance(task.prompt, str) or task.checker.name != "number":
        raise click.ClickException(f"{task.id} is not a chat whose answer is a number")
    turns: list[Message] = []
    for question, answer in WORKED:
        asked = ARITHMETIC_PROMPT.format(question=question)
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return replace(task, prompt=(*turns, *task.prompt), max_tokens=MAX_TOKENS)


def split(tasks: Sequence[Task], parts: Sequence[tuple[str, int]]) -> dict[str, list[Task]]:
    """Cut `tasks` into named parts. A question that occurs twice (MultiArith has some) counts once.

    Raises:
        click.ClickException: there are too few, or two parts of one name.
    """
    rest = list({repr(task.prompt): task for task in tasks}.values())
    wanted = sum(count for _, count in parts)
    if wanted > len(rest) or len({name for name, _ in parts}) < len(parts):
        raise click.ClickException(
            f"{wanted} tasks are wanted in parts of different names, and {len(rest)} are there"
        )
    cut = {}
    for name, count in parts:
        cut[name], rest = rest[:count], rest[count:]
    return cut


def _part(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not (name.isidentifier() and count.isdigit() and int(count)):
        raise click.BadParameter(f"{text!r} is not NAME=COUNT, such as train=60")
    return name, int(count)


@click.command()
@click.option("--source", required=True, help="As --tasks of cospec-bench: multiarith:FILE, ...")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder."
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    required=True,
    metavar="NAME=COUNT",
    help="Write COUNT tasks to NAME.jsonl; may be repeated, no task is in two parts.",
)
@click.option("--seed", default=0, show_default=True, help="Of the shuffle before the cut.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(source: str, output: Path, parts: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Write disjoint task files with worked examples in front of each question."""
    named = [_part(text) for text in parts]
    tasks = resolve_tasks(source)
    Random(seed).shuffle(tasks)
    output.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, some in split(tasks, named).items():
        file = output / f"{name}.jsonl"
        write_tasks((with_worked_examples(task) for task in some), file)
        written[name] = {"file": str(file), "tasks": len(some)}
    if as_json:
        click.echo(json.dumps(written, indent=2))
    else:
        click.echo(
            "\n".join(f"{part['tasks']} tasks in {part['file']}" for part in written.values())
        )


if __name__ == "__main__":
    main()
