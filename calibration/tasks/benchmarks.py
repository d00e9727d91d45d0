"""The benchmarks: from a row of the original file to a task, with the prompt's wording.

Each function takes one row and the number of the row; it raises KeyError, TypeError or ValueError
for a row that is not of its form. The wording is ours, one per benchmark, always a single user
message without examples: it asks for the form of answer that the checker reads. Figures are
therefore comparable between models and modes here, and only roughly with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from .announced import last_boxed
from .item import CheckerSpec, Task, user_message

Row = Mapping[str, Any]

ARITHMETIC_PROMPT = (
    "{question}\n\nSolve this step by step. End with a line of the form\nAnswer: NUMBER"
)
MATH_PROMPT = "{problem}\n\nSolve this step by step, and put the final answer within \\boxed{{}}."
HUMANEVAL_PROMPT = (
    "Complete this Python function. Reply with the whole function in one code block.\n\n"
    "```python\n{prompt}\n```"
)
MBPP_PROMPT = (
    "{text}\n\nThe code has to pass these tests:\n\n```python\n{tests}\n```\n\n"
    "Reply with the Python code in one code block, without the tests."
)
TRIVIA_PROMPT = "{question}\n\nGive the answer alone, in as few words as possible, as\nAnswer: ..."
CHOICE_PROMPT = (
    "{question}\n\n{choices}\n\nThink step by step. End with a line of the form\nAnswer: LETTER"
)

_LETTERS = "ABCD"


def gsm8k(row: Row, number: int) -> Task:
    """GSM8K: question, answer ending in `#### NUMBER`."""
    return _arithmetic(f"gsm8k-{number}", row["question"], _after_hashes(row["answer"]), "gsm8k")


def arithmetic(row: Row, number: int) -> Task:
    """SVAMP, MultiArith and their like, under the keys of the copies in circulation."""
    question = _first(row, "question", "input", "sQuestion", "Question", "question_concat")
    if "Body" in row:  # SVAMP tells the story apart from what it asks
        question = f"{str(row['Body']).rstrip()} {question}"
    answer = _first(row, "answer", "target", "Answer", "final_ans", "lSolutions")
    if isinstance(answer, list):
        answer = answer[0]
    if isinstance(answer, str) and "####" in answer:
        answer = _after_hashes(answer)
    name = str(row.get("ID") or row.get("id") or row.get("iIndex") or number)
    kind = str(row["Type"]) if row.get("Type") else None
    return _arithmetic(f"arithmetic-{name}", question, answer, kind)


def _arithmetic(name: str, question: Any, answer: Any, kind: str | None) -> Task:
    prompt = ARITHMETIC_PROMPT.format(question=_text(question).strip())
    return Task(name, user_message(prompt), CheckerSpec("number"), answer, kind, 512)


def _after_hashes(answer: Any) -> str:
    _, found, value = _text(answer).rpartition("####")
    if not found:
        raise ValueError("the answer has no '####'")
    return value.strip()


def humaneval(row: Row, number: int) -> Task:
    """HumanEval: prompt, test (defines `check`), entry_point."""
    prompt, entry_point = _text(row["prompt"]), _text(row["entry_point"])
    answer = {
        "prefix": prompt,
        "test": f"{_text(row['test'])}\n\ncheck({entry_point})\n",
        "entry_point": entry_point,
    }
    return Task(
        _text(row.get("task_id", f"HumanEval/{number - 1}")),
        user_message(HUMANEVAL_PROMPT.format(prompt=prompt.rstrip())),
        CheckerSpec("python"),
        answer,
        "humaneval",
        768,
    )


def mbpp(row: Row, number: int) -> Task:
    """MBPP: text (or prompt, in the sanitized copy), code, test_list, test_setup_code."""
    tests = [_text(test) for test in row["test_list"]]
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    answer = {"test": "\n".join(filter(None, [setup, *tests]))}
    if not tests:
        raise ValueError("no tests")
    # The reference tells which of the names in the tests is the function that is asked for.
    defined = set(re.findall(r"^def\s+(\w+)", str(row.get("code", "")), re.MULTILINE))
    called = [name for test in tests for name in re.findall(r"([A-Za-z_]\w*)\s*\(", test)]
    entry_point = next((name for name in called if name in defined), None)
    if entry_point:
        answer["entry_point"] = entry_point
    text = _text(_first(row, "text", "prompt")).strip()
    return Task(
        f"mbpp-{row.get('task_id', number)}",
        user_message(MBPP_PROMPT.format(text=text, tests="\n".join(tests))),
        CheckerSpec("python"),
        answer,
        "mbpp",
        512,
    )


def math500(row: Row, number: int) -> Task:
    """MATH-500 and MATH: problem, answer (or the box of the solution), subject, level."""
    answer = row.get("answer")
    if answer is None:
        answer = last_boxed(_text(row["solution"]))
    name = row.get("unique_id") or f"math500-{number}"
    kind = row.get("subject") or row.get("type")
    prompt = MATH_PROMPT.format(problem=_text(row["problem"]).strip())
    return Task(
        str(name), user_message(prompt), CheckerSpec("math"), answer, kind or "math500", 1024
    )


def triviaqa(row: Row, number: int) -> Task:
    """TriviaQA: Question and Answer.Aliases, or question and answer.aliases in the hub's copy."""
    question = _text(_first(row, "Question", "question")).strip()
    gold = _first(row, "Answer", "answer")
    if not isinstance(gold, Mapping):
        raise TypeError("the answer is not an object with aliases")
    accepted: list[str] = []
    for key in ("Value", "Aliases", "NormalizedAliases", "HumanAnswers"):
        value = gold.get(key, gold.get(_snake(key))) or []
        accepted += [value] if isinstance(value, str) else list(value)
    return Task(
        str(row.get("QuestionId") or row.get("question_id") or f"triviaqa-{number}"),
        user_message(TRIVIA_PROMPT.format(question=question)),
        CheckerSpec("text"),
        list(dict.fromkeys(accepted)),
        "triviaqa",
        64,
    )


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()


def gpqa(row: Row, number: int) -> Task:
    """GPQA: Question, Correct Answer, Incorrect Answer 1 to 3.

    The order of the choices is drawn from the question itself, so it is the same in every run and
    does not depend on which other items are asked.
    """
    question = _text(row["Question"]).strip()
    right = _text(row["Correct Answer"]).strip()
    choices = [right, *(_text(row[f"Incorrect Answer {i}"]).strip() for i in (1, 2, 3))]
    order = [0, 1, 2, 3]
    Random(question).shuffle(order)  # noqa: S311 - not a secret
    lines = (f"({letter}) {choices[i]}" for letter, i in zip(_LETTERS, order, strict=True))
    prompt = CHOICE_PROMPT.format(question=question, choices="\n".join(lines))
    return Task(
        f"gpqa-{row.get('Record ID') or number}",
        user_message(prompt),
        CheckerSpec("choice"),
        _LETTERS[order.index(0)],
        row.get("High-level domain") or "gpqa",
        1024,
    )


def questions(row: Row, number: int) -> Task:
    """MT-Bench and Spec-Bench: turns, category, reference. The first turn only.

    Items of the category `math_reasoning` (Spec-Bench's GSM8K questions) are checked by their
    number; all others need a judge.
    """
    turns = row["turns"] if "turns" in row else row["prompt"]
    question = _text(turns[0])
    kind = str(row.get("category", "mt-bench"))
    name = f"question-{row.get('question_id', row.get('prompt_id', number))}"
    reference = _reference(row.get("reference"))
    if kind == "math_reasoning" and reference and "####" in reference:
        return _arithmetic(name, question, _after_hashes(reference), kind)
    answer = {"question": question, "reference": reference}
    return Task(name, user_message(question), CheckerSpec("judge"), answer, kind, 1024)


def _reference(value: Any) -> str | None:
    """The reference of the first turn: a text, or several accepted ones as lines."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, list):
        value = "\n".join(map(str, value))
    return value if isinstance(value, str) and value.strip() else None


def _first(row: Row, *keys: str) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise KeyError(" or ".join(keys))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a text was expected, not {str(value)[:40]!a}")
    return value
