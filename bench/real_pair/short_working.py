"""GSM8K in short working: one calculation a line, then `#### ` and the number.

The draft is trained on this form and the target asked for it, so both write in one style: few tokens,
and drafts that are often right. A calculation is what GSM8K's own solutions mark: `<<48/2=24>>`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

SYSTEM = (
    "Solve the problem. Write only the necessary calculations, one short step a line, "
    "then '#### ' and the number."
)
EXAMPLE = " For example:\n48 / 2 = 24\n48 + 24 = 72\n#### 72"
"""What the form looks like, for a model that was not trained on it. Without it the target writes units
and words, and cannot continue what the draft began."""
IN_WORDS = "Solve the problem step by step. End with a line '#### ' and the number."
"""The opposite: long answers, to compare with."""

KEYS = (("question", "input"), ("answer", "target"))
"""Names of the fields in GSM8K's file and in MultiArith's."""

_CALCULATION = re.compile(r"<<(.+?)>>")
_OPERATOR = re.compile(r"(?<=[\d.%)])([-+*/=])(?=[\d.(-])")


@dataclass(frozen=True)
class Problem:
    """One item of GSM8K, or of another collection of word problems.

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
    def steps(self) -> int:
        """Calculations in the working; 0 if there is none."""
        return 0 if self.working is None else self.working.count("\n")

    def messages(self, system: str = SYSTEM) -> tuple[dict[str, str], ...]:
        """Return the conversation that asks the question under an instruction."""
        return ({"role": "system", "content": system}, {"role": "user", "content": self.question})


def read_problems(path: Path) -> list[Problem]:
    """Read GSM8K's own file, or MultiArith's, whose answers are numbers alone."""
    problems = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        question, solution = (row.get(a, row.get(b)) for a, b in KEYS)
        steps, _, answer = str(solution).rpartition("####")
        working = short_working(steps, answer)
        problems.append(Problem(number, question, working, _plain(answer)))
    return problems


def short_working(solution: str, answer: str) -> str | None:
    """Return the calculations of a solution, one a line, and the answer; None if it marks none."""
    steps = [_OPERATOR.sub(r" \1 ", step) for step in _CALCULATION.findall(solution)]
    return "\n".join([*steps, f"#### {_plain(answer)}"]) if steps else None


def _plain(answer: str) -> str:
    return answer.strip().replace(",", "")
