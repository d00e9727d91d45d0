"""GSM8K in short working: one calculation a line, then `#### ` and the number.

The draft is trained on this form and the target asked for it, so both write in one style: few tokens,
and drafts that are often right. A calculation is what GSM8K's own solutions mark: `<<48/2=24>>`.

    python -m bench.real_pair.short_working --gsm8k gsm8k_test.jsonl --output test-tasks.jsonl

writes the items as tasks for `cospec-bench quality` and `cospec-calibrate arbiter`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import click

from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.jsonl import write_tasks
from cospec.runtime.cli.common import CospecCommand

SYSTEM = (
    "Solve the problem. Write only the necessary calculations, one short step a line, "
    "then '#### ' and the number."
)
MAX_TOKENS = 200

_CALCULATION = re.compile(r"<<(.+?)>>")
_OPERATOR = re.compile(r"(?<=[\d.%)])([-+*/=])(?=[\d.(-])")


@dataclass(frozen=True)
class Problem:
    """One item of GSM8K.

    Attributes:
        number: its line in the file, from 1.
        question: as it is asked.
        working: the answer in short working; None if the solution marks no calculation.
        answer: the number alone.
    """

    number: int
    question: str
    working: str | None
    answer: str

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The conversation that asks for short working."""
        return (
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.question},
        )


def read_problems(path: Path) -> list[Problem]:
    """Read GSM8K's own file."""
    problems = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        steps, _, answer = row["answer"].rpartition("####")
        working = short_working(steps, answer)
        problems.append(Problem(number, row["question"], working, _plain(answer)))
    return problems


def short_working(solution: str, answer: str) -> str | None:
    """Return the calculations of a solution, one a line, and the answer; None if it marks none."""
    steps = [_OPERATOR.sub(r" \1 ", step) for step in _CALCULATION.findall(solution)]
    return "\n".join([*steps, f"#### {_plain(answer)}"]) if steps else None


def _plain(answer: str) -> str:
    return answer.strip().replace(",", "")


@click.command(cls=CospecCommand)
@click.option(
    "--gsm8k", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Task file.")
def main(gsm8k: Path, output: Path) -> None:
    """Write GSM8K as tasks that ask for short working."""
    tasks = [
        Task(
            f"gsm8k-{problem.number}",
            problem.messages,
            CheckerSpec("number"),
            problem.answer,
            "gsm8k",
            MAX_TOKENS,
        )
        for problem in read_problems(gsm8k)
    ]
    write_tasks(tasks, output)
    click.echo(f"{output}: {len(tasks)} tasks")


if __name__ == "__main__":
    main()
