"""One task: a prompt, and how an answer to it is checked. Its JSON form is defined here.

A task file is JSONL in UTF-8, one object a line:

    {"id": "gsm8k-1", "prompt": "...", "checker": {"name": "number"}, "answer": "18"}

| key | value |
|---|---|
| id | text, unique in the file |
| prompt | text that the model continues as it is; or, instead of it: |
| messages | chat messages, [{"role": "user", "content": "..."}], rendered with the chat template |
| checker | {"name": NAME, ...options}; the names and options are in checkers.py |
| answer | what the checker compares with; its form is the checker's |
| kind | optional text: the group that the task is counted under |
| max_tokens | optional number: how long an answer may be; the caller's default without it |
| solution | optional text: a whole right answer, worked out as the models are asked to; for training |
| stop | optional text, or up to 16: an answer ends before the first of them that occurs |

Other keys are errors, so that a mistyped one is not silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta, Struct

from ...errors import UsageError
from ...runtime.bundle.json_input import convert, matching

Message = Mapping[str, str]
"""{"role": ..., "content": ...}, as `Session.generate` takes them."""

MAX_TOKENS_LIMIT = 1_000_000
MAX_STOPS = 16

_Stop = Annotated[str, Meta(min_length=1)]
_Text = Annotated[str, matching(r"\S", "a text that is not blank")]


class _MessageRow(Struct, forbid_unknown_fields=True):
    role: str
    content: str


class _Row(Struct, forbid_unknown_fields=True):
    id: _Text
    checker: dict[str, Any]
    answer: Any
    prompt: _Text | None = None
    messages: Annotated[list[_MessageRow], Meta(min_length=1)] | None = None
    kind: _Text | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS_LIMIT)] | None = None
    solution: _Text | None = None
    stop: Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | _Stop = []


@dataclass(frozen=True)
class CheckerSpec:
    """Which checker judges an answer, by name, and the options that differ from its defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One prompt with a checkable answer.

    Attributes:
        id: unique among the tasks of one run.
        prompt: text to be continued, or chat messages.
        checker: what judges a model's text.
        answer: what the checker compares with (JSON values only).
        kind: the group that the task is counted under, if any.
        max_tokens: the longest answer, in tokens; the caller's default if None.
        solution: a whole right answer, worked out in the form that the prompt asks for, from which an
            arbiter may learn.
        stop: texts that end an answer; what follows the first of them is not generated or checked.
    """

    id: str
    prompt: str | tuple[Message, ...]
    checker: CheckerSpec
    answer: Any
    kind: str | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    solution: str | None = None


def user_message(content: str) -> tuple[Message, ...]:
    """The prompt of a single chat turn."""
    return ({"role": "user", "content": content},)


def task_to_row(task: Task) -> dict[str, Any]:
    """The JSON object of a task."""
    row: dict[str, Any] = {"id": task.id}
    if isinstance(task.prompt, str):
        row["prompt"] = task.prompt
    else:
        row["messages"] = [dict(message) for message in task.prompt]
    row["checker"] = {"name": task.checker.name, **task.checker.options}
    row["answer"] = task.answer
    if task.kind is not None:
        row["kind"] = task.kind
    if task.max_tokens is not None:
        row["max_tokens"] = task.max_tokens
    if task.solution is not None:
        row["solution"] = task.solution
    if task.stop:
        row["stop"] = list(task.stop)
    return row


def task_from_row(row: Mapping[str, Any]) -> Task:
    """The task of a JSON object. The checker's options and the answer are not looked into.

    Raises:
        UsageError: a key is missing, unknown or of the wrong type; names it.
    """
    checked = convert(row, _Row, error=UsageError)
    if (checked.prompt is None) == (checked.messages is None):
        raise UsageError("exactly one of 'prompt' and 'messages' is needed")
    name = checked.checker.pop("name", None)
    if not isinstance(name, str):
        raise UsageError("checker: expected an object with a 'name'")
    return Task(
        id=checked.id,
        prompt=checked.prompt or tuple(row["messages"]),
        checker=CheckerSpec(name, checked.checker),
        answer=checked.answer,
        kind=checked.kind,
        max_tokens=checked.max_tokens,
        solution=checked.solution,
        stop=(checked.stop,) if isinstance(checked.stop, str) else tuple(checked.stop),
    )
