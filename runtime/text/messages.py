"""Chat messages: one reading for the library, batch files and HTTP.

Clients send back what other servers gave them, so a message may carry keys that mean nothing to a
model. Those are dropped; every other key reaches the chat template, as it does in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import PromptError

Message = Mapping[str, Any]

MEANINGLESS = frozenset({"annotations", "audio", "cache_control", "refusal"})
"""Keys that say something about a message rather than being part of it."""

MEDIA = ("image", "audio", "video", "file")
"""Kinds of content that no model here reads; part types contain these words."""

MAX_DEPTH = 64
"""Levels of objects and lists within a message, tool or template variable."""

_EXAMPLE = 'messages look like [{"role": "user", "content": "..."}]'


def shown(value: object, limit: int = 500) -> str:
    """Return a text for an error message: cut off, and escaped unless it can be printed."""
    text = str(value)[:limit]
    return text if text.isprintable() else ascii(text)[1:-1]


class MessageError(PromptError):
    """A message that cannot be read.

    Attributes:
        where: the field, such as `messages[2].content`.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where} {problem}", hint=_EXAMPLE)
        self.where = where


@dataclass(frozen=True)
class MessageForm:
    """The form in which a chat template takes messages.

    Attributes:
        text: content as a text.
        parts: content as a list of parts.
        developer: the role `developer`; it becomes `system` otherwise.
        call_objects: arguments of tool calls as objects rather than as JSON texts.
    """

    text: bool = True
    parts: bool = False
    developer: bool = False
    call_objects: bool = True


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Return messages as plain JSON values, without the keys that mean nothing to a model.

    Args:
        messages: a list of objects with a `role` and a `content`: a text, or a list of parts of type
            `text`. An assistant's message may have `tool_calls` instead of a content.

    Raises:
        MessageError: names the field.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise MessageError("messages", "must be a list of objects")
    if not messages:
        raise MessageError("messages", "is empty")
    return [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy of a JSON value, made of Python's own types.

    Raises:
        MessageError: the value, or a part of it, is not JSON.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > MAX_DEPTH:
        raise MessageError(where, f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise MessageError(where, "has a key that is not a text")
        return {key: plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    raise MessageError(where, f"holds a value of type {type(value).__name__}, which is not JSON")


def shape(messages: Sequence[Message], form: MessageForm) -> list[dict[str, Any]]:
    """Return messages from `check_messages` in the form that a template takes."""
    return [_shape_message(message, form) for message in messages]


def _check_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise MessageError(where, "must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise MessageError(f"{where}.role", "must be a text")
    kept = {
        key: plain(value, f"{where}.{shown(key, 40)}")
        for key, value in message.items()
        if key not in MEANINGLESS and value is not None
    }
    _check_calls(kept, where)
    content = kept.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if isinstance(content, list):
        content = [_check_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    elif content is not None and not isinstance(content, str) and role not in ("tool", "function"):
        raise MessageError(f"{where}.content", "must be a text, or a list of parts of type text")
    if content is not None:
        kept["content"] = content
    elif role != "assistant" or not (kept.keys() - {"role", "name"}):
        raise MessageError(f"{where}.content", "is missing")
    return kept


def _check_calls(message: dict[str, Any], where: str) -> None:
    """Check the tool calls of a message, and write the old form of a call as the new one."""
    old = message.pop("function_call", None)
    if old is not None:
        message["tool_calls"] = [{"type": "function", "function": old}]
    calls = message.pop("tool_calls", None)
    if not calls:
        return
    field = f"{where}.tool_calls"
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise MessageError(field, "must be a list of objects")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise MessageError(field, "has a call without the name of a function")
    message["tool_calls"] = calls


def _check_part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise MessageError(where, "must be an object with type and text")
    kind = part.get("type", "text")
    if not isinstance(kind, str):
        raise MessageError(where, "has a type that is not a text")
    if any(word in kind for word in MEDIA):
        raise MessageError(where, f"has the type {kind[:40]!a}, but this model reads text only")
    if kind == "refusal":
        part = {"text": part.get("refusal")}
    elif kind not in ("text", "input_text", "output_text"):
        return {key: value for key, value in part.items() if key not in MEANINGLESS}
    if not isinstance(part.get("text"), str):
        raise MessageError(where, "must have a text")
    return {"type": "text", "text": part["text"]}


def _shape_message(message: Message, form: MessageForm) -> dict[str, Any]:
    shaped = dict(message)
    if shaped["role"] == "developer" and not form.developer:
        shaped["role"] = "system"
    content = shaped.get("content")
    if isinstance(content, list) and not form.parts:
        texts = [part["text"] for part in content if part.get("type") == "text"]
        if len(texts) == len(content):
            shaped["content"] = "\n".join(texts)
    elif isinstance(content, str) and form.parts and not form.text:
        shaped["content"] = [{"type": "text", "text": content}]
    if form.call_objects and "tool_calls" in shaped:
        shaped["tool_calls"] = [_with_object(call) for call in shaped["tool_calls"]]
    return shaped


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call whose arguments are an object, if they are the JSON text of one.

    OpenAI's API has them as a text; templates are written for objects.
    """
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return call  # the template gets the text that the model wrote
    if not isinstance(value, dict):
        return call
    function = {**function, "arguments": value}
    return {**call, "function": function} if "function" in call else function
