"""Generated problems with checkable answers, for training and testing the tiny pair.

This module uses the standard library only, so that tests and benchmarks need no torch for it. The
split depends on what a problem asks (kind, form, operands) and not on its wording: no test problem
occurs in training in another wording.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Literal

from .stories import NAMES, NOUNS, STORIES
from .styles import CLOSINGS, STYLES, Style, Writer, calculate

Split = Literal["train", "validation", "test"]
KINDS = ("word", "chain", "mul", "list")

# Draws without a new problem before `distinct` gives up.
_PATIENCE = 5_000


@dataclass(frozen=True)
class Problem:
    """One question with its answer.

    `form` is the variety within the kind, and `operands` are the numbers. Together they identify the
    problem in any wording.
    """

    kind: str
    form: str
    operands: tuple[int, ...]
    question: str
    answer: str

    @property
    def key(self) -> str:
        """The identity of the problem, the same for every wording."""
        return f"{self.kind}/{self.form}/{','.join(map(str, self.operands))}"


def _steps(problem: Problem) -> tuple[int, list[tuple[str, int]]]:
    """Return the first number and the (operator, number) steps of a problem made of sums."""
    numbers = problem.operands
    if problem.kind == "word":
        story = STORIES[problem.form]
        operators = story.operators
        if story.reuses_first:
            numbers = (*numbers, numbers[0])
    elif problem.kind == "chain":
        operators = problem.form
    else:
        operators = "+" * (len(numbers) - 1)
    return numbers[0], list(zip(operators, numbers[1:], strict=True))


def _value(first: int, steps: Sequence[tuple[str, int]]) -> int | None:
    """Return the value of a chain, or None if an intermediate value is negative."""
    for operator, number in steps:
        first = calculate(first, operator, number)
        if first < 0:
            return None
    return first


def _draw_word(rng: Random) -> Problem:
    form = rng.choice(list(STORIES))
    story = STORIES[form]
    operands = tuple(rng.randint(*bounds) for bounds in story.ranges)
    x, y = rng.sample(NAMES, 2)
    letters = dict(zip("abc", operands, strict=False))
    question = rng.choice(story.wordings).format(x=x, y=y, n=rng.choice(NOUNS), **letters)
    return Problem("word", form, operands, question, "")


def _draw_chain(rng: Random) -> Problem:
    length = rng.choice((3, 4))
    operands = tuple(rng.randint(11, 89) for _ in range(length))
    operators = "".join(rng.choice("+-") for _ in range(length - 1))
    pairs = zip(operators, operands[1:], strict=True)
    text = str(operands[0]) + "".join(f"{operator}{number}" for operator, number in pairs)
    question = rng.choice(("Compute {}.", "What is {}?", "Work out {}.")).format(text)
    return Problem("chain", operators, operands, question, "")


def _draw_mul(rng: Random) -> Problem:
    a, b = rng.randint(101, 999), rng.randint(2, 9)
    wordings = ("Multiply {} by {}.", "What is {}*{}?", "What is {} times {}?")
    return Problem("mul", "by-one-digit", (a, b), rng.choice(wordings).format(a, b), str(a * b))


_LIST_WORDINGS = {
    "sort": ("Sort {}.", "Put {} in order."),
    "reverse": ("Reverse {}.", "Write {} backwards."),
    "largest": ("Find the largest of {}.", "What is the largest of {}?"),
    "digit-sum": ("Add the digits of {}.", "What is the digit sum of {}?"),
}


def _draw_list(rng: Random) -> Problem:
    form = rng.choice(list(_LIST_WORDINGS))
    if form == "digit-sum":
        operands = tuple(rng.randint(1, 9) for _ in range(rng.choice((5, 6))))
        text = "".join(map(str, operands))
    else:
        operands = tuple(rng.sample(range(10, 100), rng.choice((4, 5))))
        text = " ".join(map(str, operands))
    answers = {
        "sort": sorted(operands),
        "reverse": list(reversed(operands)),
        "largest": [max(operands)],
        "digit-sum": [sum(operands)],
    }
    question = rng.choice(_LIST_WORDINGS[form]).format(text)
    return Problem("list", form, operands, question, " ".join(map(str, answers[form])))


_DRAW: dict[str, Callable[[Random], Problem]] = {
    "word": _draw_word,
    "chain": _draw_chain,
    "mul": _draw_mul,
    "list": _draw_list,
}


def seeded(*parts: object) -> Random:
    """Return a random generator that is seeded with the parts."""
    return Random("/".join(map(str, parts)))  # noqa: S311 - problems, not secrets


def draw(kind: str, split: Split, rng: Random) -> Problem:
    """Draw a random problem of a kind and a split. Raises ValueError for an unknown kind."""
    if kind not in _DRAW:
        raise ValueError(f"no problems of kind {kind!r}; the kinds are {', '.join(KINDS)}")
    while True:
        problem = _DRAW[kind](rng)
        if not problem.answer:
            value = _value(*_steps(problem))
            if value is None:
                continue
            problem = Problem(
                problem.kind, problem.form, problem.operands, problem.question, str(value)
            )
        if split_of(problem) == split:
            return problem


def problems(split: Split, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Problem]:
    """Yield problems of one split without end; the kinds take turns.

    The same seed gives the same problems. A problem can occur again, in the same or another wording;
    `distinct` drops repetitions.
    """
    rng = seeded(split, seed)
    for index in count():
        yield draw(kinds[index % len(kinds)], split, rng)


def distinct(split: Split, seed: int, n: int, kinds: Sequence[str] = KINDS) -> list[Problem]:
    """Draw n different problems of one split, as many of each kind as n allows.

    "mul" has the fewest, about 700 in the test split. Raises ValueError if a kind has not enough.
    """
    chosen: dict[str, Problem] = {}
    rng = seeded(split, seed)
    for index in range(n):
        kind = kinds[index % len(kinds)]
        for _ in range(_PATIENCE):
            problem = draw(kind, split, rng)
            if problem.key not in chosen:
                chosen[problem.key] = problem
                break
        else:
            raise ValueError(f"there are not {n} different problems: {kind!r} has no more of them")
    return list(chosen.values())


def split_of(problem: Problem) -> Split:
    """Return the split a problem belongs to, by a hash of its key: about 80 / 10 / 10 %."""
    bucket = hashlib.sha256(problem.key.encode()).digest()[0] * 10 // 256
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def prompt(problem: Problem) -> str:
    """Return the exact text fed to a model (the tokenizer adds the beginning-of-sequence token)."""
    return f"Q: {problem.question}\nA:"


def solve(problem: Problem, rng: Random, style: Style | str) -> str:
    """Write a correct solution, to be appended to the prompt; style is a Style or its name."""
    writer = Writer(STYLES[style] if isinstance(style, str) else style, rng)
    if problem.kind == "mul":
        _solve_mul(problem, writer)
    elif problem.form == "largest":
        best = problem.operands[0]
        for number in problem.operands[1:]:
            best, smaller = max(best, number), min(best, number)
            writer.comparison(best, smaller)
    elif problem.form in ("sort", "reverse"):
        for item in problem.answer.split():
            writer.step(item)
    else:
        value, steps = _steps(problem)
        for operator, number in steps:
            value = writer.sum(value, operator, number)
    return " " + writer.finish(problem.answer)


def _solve_mul(problem: Problem, writer: Writer) -> None:
    number, factor = problem.operands
    digits = str(number)
    parts = [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]
    total = 0
    for part in writer.parts(parts):
        product = writer.sum(part, "*", factor)
        if total:
            writer.running_total(total + product)
        total += product


_FINAL = re.compile(rf"(?:{'|'.join(map(re.escape, CLOSINGS))})([0-9]+(?: [0-9]+)*)")


def final_answer(text: str) -> str | None:
    """Return the last announced answer in a model's text, or None."""
    found = _FINAL.findall(text)
    return found[-1] if found else None


def is_correct(problem: Problem, text: str) -> bool:
    """Say whether the final answer is right. Only the answer counts, not the steps."""
    return final_answer(text) == problem.answer
