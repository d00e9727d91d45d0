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

Other keys are errors, so that a mistyped one is not silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, str]
"""{"role": ..., "content": ...}, as `Session.generate` takes them."""

MAX_TOKENS_LIMIT = 1_000_000
_REQUIRED = ("id", "checker", "answer")
_OPTIONAL = ("prompt", "messages", "kind", "max_tokens")


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
    """

    id: str
    prompt: str | tuple[Message, ...]
    checker: CheckerSpec
    answer: Any
    kind: str | None = None
    max_tokens: int | None = None


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
    return row


def task_from_row(row: Mapping[str, Any]) -> Task:
    """The task of a JSON object. The checker's options and the answer are not looked into.

    Raises:
        ValueError: a key is missing, unknown or of the wrong type; says which.
    """
    known = (*_REQUIRED, *_OPTIONAL)
    unknown = [key for key in row if key not in known]
    if unknown:
        raise ValueError(f"unknown key {unknown[0][:60]!a} (the keys are {', '.join(known)})")
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        raise ValueError(f"the key '{missing[0]}' is missing")
    return Task(
        id=_text(row["id"], "id"),
        prompt=_prompt(row),
        checker=_checker(row["checker"]),
        answer=row["answer"],
        kind=None if row.get("kind") is None else _text(row["kind"], "kind"),
        max_tokens=_max_tokens(row.get("max_tokens")),
    )


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{key}' is not a text, or is empty")
    return value


def _prompt(row: Mapping[str, Any]) -> str | tuple[Message, ...]:
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("exactly one of 'prompt' and 'messages' is needed")
    if "prompt" in row:
        return _text(row["prompt"], "prompt")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' is not a list, or is empty")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f"message {number} is not an object with 'role' and 'content' only")
        if not all(isinstance(value, str) for value in message.values()):
            raise ValueError(f"message {number}: 'role' and 'content' must be texts")
    return tuple(messages)


def _checker(value: Any) -> CheckerSpec:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ValueError("'checker' is not an object with a 'name'")  # noqa: TRY004 - as documented
    options = {key: option for key, option in value.items() if key != "name"}
    return CheckerSpec(name, options)


def _max_tokens(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_TOKENS_LIMIT:
        raise ValueError(f"'max_tokens' is not a whole number from 1 to {MAX_TOKENS_LIMIT}")
    return value
