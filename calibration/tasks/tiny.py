"""The tiny pair's generated problems as tasks, and their checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ...errors import UsageError
from ...models.tiny_pair.tasks import KINDS, Split, distinct, final_answer
from .item import CheckerSpec, Task, user_message

SPLITS: tuple[Split, ...] = get_args(Split)
MAX_TOKENS = 96
"""As in the tiny pair's own evaluation; its longest solutions are shorter."""


@dataclass(frozen=True)
class TinyChecker:
    """The tiny pair's rule: the last announced answer, a number or a list of numbers, is right."""

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        if not isinstance(answer, str) or not answer.replace(" ", "").isdigit():
            return "the answer is not a text of one or several numbers"
        return None

    def check(self, answer: Any, text: str) -> bool:
        """Whether the last answer that `text` announces is `answer`."""
        return bool(final_answer(text) == answer)


def tiny_tasks(
    split: Split, count: int, seed: int, kinds: Sequence[str] | None = None
) -> list[Task]:
    """Different generated problems as chat tasks, the kinds taking turns.

    The same arguments give the same tasks, and a larger count only appends some. Problems of
    different splits are different whatever the seeds; those of one split and two seeds may repeat.

    Args:
        split: "train", "validation" or "test".
        count: how many.
        seed: which ones.
        kinds: some of "word", "chain", "mul", "list"; all if None.

    Raises:
        UsageError: no such split or kind, a count below 1, or more problems than there are.
    """
    kinds = KINDS if kinds is None else kinds
    unknown = [kind for kind in kinds if kind not in KINDS]
    if split not in SPLITS:
        raise UsageError(f"the tiny tasks have no split {split!r}; they have {', '.join(SPLITS)}")
    if unknown or not kinds:
        raise UsageError(f"tiny tasks of the kinds {list(kinds)}; there are {', '.join(KINDS)}")
    if count < 1:
        raise UsageError(f"{count} tiny tasks; at least 1 is needed")
    try:
        problems = distinct(split, seed, count, kinds)
    except ValueError as error:
        raise UsageError(f"tiny tasks: {error}", hint="Ask for fewer items.") from None
    return [
        Task(
            id=f"tiny/{split}/{problem.key}",
            prompt=user_message(problem.question),
            checker=CheckerSpec("tiny"),
            answer=problem.answer,
            kind=problem.kind,
            max_tokens=MAX_TOKENS,
        )
        for problem in problems
    ]
