"""The checkers by name: `check(answer, text) -> bool`, whatever the text.

| name | right when | options |
|---|---|---|
| number | the final number is the answer | tolerance (relative, 1e-6) |
| choice | the chosen letter is the answer | letters ("ABCD") |
| text | the short answer is one of the accepted texts | where ("answer" or "anywhere") |
| math | the final expression equals the answer | |
| python | the code passes its tests in the sandbox | seconds (10), memory_mb (512) |
| judge | another model rates the text highly enough | threshold (6) |
| tiny | the tiny pair's own rule | |

Each is a frozen dataclass whose fields are its options, in the file that is named after it. The first
four read the first complete answer of a text, without the model's thoughts (announced.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

from ...errors import UsageError
from .algebra import require_math_verify
from .choice import ChoiceChecker
from .expression import MathChecker
from .isolation import STRONGEST, Isolation
from .item import CheckerSpec, Task
from .judge import JudgeChecker, JudgeServer
from .number import NumberChecker
from .python_code import PythonChecker
from .sandbox import require_isolation
from .text import TextChecker
from .tiny import TinyChecker


class Checker(Protocol):
    """Judges texts against gold answers. Never raises because of a text."""

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""

    def check(self, answer: Any, text: str) -> bool:
        """Whether `text` gives `answer`, of which `problem_with` found no problem."""


CHECKERS: dict[str, type[Checker]] = {
    "number": NumberChecker,
    "choice": ChoiceChecker,
    "text": TextChecker,
    "math": MathChecker,
    "python": PythonChecker,
    "judge": JudgeChecker,
    "tiny": TinyChecker,
}


def make_checker(spec: CheckerSpec) -> Checker:
    """The checker that a task names.

    Raises:
        UsageError: no such checker, an unknown option, or a value that the option cannot take.
    """
    kind = CHECKERS.get(spec.name)
    if kind is None:
        raise UsageError(
            f"there is no checker {spec.name[:60]!a}", hint=f"The checkers: {', '.join(CHECKERS)}."
        )
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for option in spec.options:
        if option not in known:
            options = ", ".join(known) or "none"
            raise UsageError(
                f"the checker '{spec.name}' has no option {option[:60]!a} (its options: {options})"
            )
    try:
        return kind(**spec.options)
    except ValueError as error:
        raise UsageError(f"the checker '{spec.name}': {error}") from None


def problem_with(task: Task) -> str | None:
    """What is wrong with a task's gold answer, or None.

    Raises:
        UsageError: the checker itself is wrong, as `make_checker` says.
    """
    return make_checker(task.checker).problem_with(task.answer)


def require_working(tasks: Iterable[Task], sandbox_level: Isolation = STRONGEST) -> None:
    """Find out before a long job, not in the middle, whether its checkers can work here.

    Args:
        tasks: the tasks of the job.
        sandbox_level: the weakest isolation that generated code may run in.

    Raises:
        UsageError: a task needs a judge, and none is set.
        BackendError: a task runs generated code, and the sandbox does not work here or isolates less
            than `sandbox_level`; or a package is not installed.
    """
    names = {task.checker.name for task in tasks}
    if "judge" in names:
        JudgeServer.from_environment()
    if "math" in names:
        require_math_verify()
    if "python" in names:
        require_isolation(sandbox_level)


def check(task: Task, text: str) -> bool:
    """Whether a model's text, up to the task's first stop text, solves a task.

    Raises:
        BackendError: a sandbox or a judge that does not work; never because of the text.
    """
    text = text[: min((text.find(stop) for stop in task.stop if stop in text), default=None)]
    return make_checker(task.checker).check(task.answer, text)
