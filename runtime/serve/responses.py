"""OpenAI's Responses API: text, reasoning, calls of functions and structured output, without a memory.

Nothing is stored between requests, so a client sends the whole conversation each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .constraints import read_format
from .fields import Fields
from .refusals import RefusedError
from .requests import Defaults, Request, finish_request
from .tool_use import read_tool_use

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "truncation": ("disabled",),
    "max_tool_calls": (),
    "n": (1,),
    "details": (False,),
    "trace": (False,),
}
"""Fields that are known and not supported, each with the values at which it has no effect here."""

LOGPROBS = "message.output_text.logprobs"
"""Value of `include` that asks for log-probabilities."""

TEXT_TYPES = (None, "message")


def responses_request(data: bytes, defaults: Defaults) -> Request:
    """Read the body of `/v1/responses`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    fields.refuse(UNSUPPORTED)
    given = fields.take("input", str | list[Any])
    if not given:
        raise RefusedError("input must be a text, or a list of items", param="input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    instructions = fields.take("instructions", str)
    before = [] if instructions is None else [{"role": "system", "content": instructions}]
    top = fields.take("top_logprobs")
    wanted = LOGPROBS in (fields.take("include", list[str]) or ())
    fields.adopt("max_tokens", fields, "max_output_tokens")
    if fields.has("reasoning"):
        reasoning = fields.inside("reasoning")
        fields.adopt("reasoning_effort", reasoning, "effort")
        reasoning.finish({}, ("summary", "generate_summary"))
    form = None
    if fields.has("text"):
        text = fields.inside("text")
        form = read_format(text.inside("format")) if text.has("format") else None
        text.finish({"verbosity": ("medium",)})
    echoed = {
        "instructions": instructions,
        "metadata": fields.take("metadata", dict[str, str]) or {},
        "tools": fields.peek("tools") or [],
        "tool_choice": fields.peek("tool_choice") or "auto",
    }
    return finish_request(
        fields,
        [[*before, *_messages(items)]],
        defaults,
        {"top_logprobs": (top or 0) if wanted else None},
        unsupported={},
        constraint={} if form is None else dict([form]),
        tool_use=read_tool_use(fields),
        echoed=echoed,
    )


def _messages(items: Sequence[Any]) -> list[Any]:
    """Return input items as the messages of a chat."""
    messages: list[Any] = []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        if not isinstance(item, dict):
            raise RefusedError(f"{where} must be an object", param=where)
        kind = item.get("type")
        if kind in TEXT_TYPES:
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            call = {key: item.get(key) for key in ("name", "arguments")}
            last = messages[-1] if messages and messages[-1].get("tool_calls") else None
            if last is None:
                last = {"role": "assistant", "content": None, "tool_calls": []}
                messages.append(last)
            last["tool_calls"].append(
                {"id": item.get("call_id"), "type": "function", "function": call}
            )
        elif kind == "function_call_output":
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": item.get("call_id"),
                    "content": item.get("output"),
                }
            )
        elif kind != "reasoning":  # earlier reasoning is left out, as the models expect
            raise RefusedError(
                f"{where} has the type {str(kind)[:40]!a}, which this server does not support",
                param=f"{where}.type",
            )
    return messages
