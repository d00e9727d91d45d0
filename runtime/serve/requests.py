"""What a client may ask, read from the JSON of OpenAI's two text APIs.

Nothing that would change the output is ignored: a field that is unknown or not supported is refused,
unless it has a value at which it has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
from msgspec import Raw

from ..decoding.options import GenerationOptions
from ..decoding.session import Prompt
from ..sampling.declaration import OptionError, options_of
from .fields import Fields
from .refusals import RefusedError, text_of, unknown_model

HARMLESS = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
    }
)
"""Fields that change nothing in the text of an answer; any value is accepted."""

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
}
"""Fields that are known and not supported, each with the values at which it has no effect here."""

ROLE = Literal["system", "developer", "user", "assistant"]


class Part(msgspec.Struct):
    """A part of a message's content; its other keys have no effect."""

    type: str
    text: str | None = None


@dataclass(frozen=True)
class Defaults:
    """Values for requests that do not set them.

    Attributes:
        model: name of the only model.
        options: of generations. The threshold counts in the mode `collab` only.
    """

    model: str
    options: GenerationOptions = field(default_factory=GenerationOptions)


@dataclass(frozen=True)
class Request:
    """One request, checked as far as that goes without the bundle.

    Attributes:
        prompt: text or messages.
        options: of the generation.
        stream: answer with events.
        include_usage: end the events with the usage.
    """

    prompt: Prompt
    options: GenerationOptions
    stream: bool
    include_usage: bool


def chat_request(data: bytes, defaults: Defaults) -> Request:
    """Read the body of `/v1/chat/completions`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    prompt = _messages(fields.take("messages", list[Raw]))
    wanted = fields.take("logprobs", bool)
    top = fields.take("top_logprobs")
    if top and not wanted:
        raise RefusedError("top_logprobs needs logprobs: true", param="top_logprobs")
    return _request(fields, prompt, {"top_logprobs": (top or 0) if wanted else None}, defaults)


def completion_request(data: bytes, defaults: Defaults) -> Request:
    """Read the body of `/v1/completions`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    prompt = fields.take("prompt", str | list[Any])
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise RefusedError(
            "prompt is a list: several prompts, or tokens, are not supported; send one text",
            param="prompt",
        )
    if not isinstance(prompt, str):
        raise RefusedError("prompt must be a string", param="prompt")
    return _request(fields, prompt, {"logprobs": fields.take("logprobs")}, defaults)


def _request(
    fields: Fields, prompt: Prompt, logprobs: Mapping[str, Any], defaults: Defaults
) -> Request:
    """Read what both APIs share, and refuse what is left.

    Args:
        fields: of the body.
        prompt: of the request.
        logprobs: the number of log-probabilities, by the name of its field in this API.
        defaults: of the server.
    """
    model = fields.take("model", str)
    if model is not None and model != defaults.model:
        raise unknown_model(model, defaults.model)
    stream = fields.take("stream", bool) or False
    include_usage = _include_usage(fields.take("stream_options", Raw), stream=stream)
    options = _options(fields, logprobs, defaults.options)
    fields.finish(UNSUPPORTED, HARMLESS)
    return Request(prompt, options, stream, include_usage)


def _include_usage(options: Raw | None, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise RefusedError("stream_options needs stream: true", param="stream_options")
    fields = Fields(options, within="stream_options.")
    wanted = fields.take("include_usage", bool)
    fields.finish({"include_obfuscation": (False,), "continuous_usage_stats": (False,)})
    return wanted or False


def _options(
    fields: Fields, logprobs: Mapping[str, Any], defaults: GenerationOptions
) -> GenerationOptions:
    """Read the options of the generation, some of which have other names in OpenAI's API."""
    declared = options_of(GenerationOptions)
    names = {each.http: name for name, each in declared.items() if name != "logprobs"}
    names.pop("", None)
    names["max_completion_tokens"] = "max_tokens"
    values = {name: fields.take(name) for name in names}
    values |= logprobs
    names |= dict.fromkeys(logprobs, "logprobs")
    given = {name: value for name, value in values.items() if value is not None}
    if given.get("top_k") == -1:  # vLLM's spelling of all tokens
        given["top_k"] = 0
    if given.get("mode") == "strict" and defaults.mode == "collab":
        defaults = replace(defaults, threshold=None)
    read: dict[str, Any] = {}
    for name, value in given.items():
        option = declared[names[name]]
        try:
            new = option.read(value)
        except OptionError as error:
            text = text_of(error).replace(option.name, name, 1)
            raise RefusedError(text, param=name) from None
        if read.setdefault(option.name, new) != new:
            raise RefusedError(f"{option.name} and {name} differ", param=option.name)
    options = defaults.updated(read)
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise RefusedError(
            f"min_tokens is {options.min_tokens}, above max_tokens, {options.max_tokens}",
            param="min_tokens",
        )
    return options


def _messages(value: Sequence[Raw] | None) -> Sequence[Mapping[str, Any]]:
    if not value:
        raise RefusedError("messages must be a list with at least one message", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _message(message: Raw, where: str) -> dict[str, Any]:
    fields = Fields(message, within=f"{where}.")
    role = fields.take("role", ROLE)
    if role is None:
        raise RefusedError(f"{where} has no role", param=f"{where}.role")
    read = {"role": "system" if role == "developer" else role, "content": _content(fields, where)}
    name = fields.take("name", str)  # for the chat template, which may use it
    fields.finish(
        {"tool_calls": ([],), "function_call": (), "tool_call_id": (), "audio": ()},
        ignore_unknown=True,
    )
    return read if name is None else {**read, "name": name}


def _content(fields: Fields, where: str) -> str:
    """Return the text of a message, which may come in parts."""
    content = fields.take("content", str | list[Part])
    if isinstance(content, str):
        return content
    where = f"{where}.content"
    if not content:
        raise RefusedError(
            f"{where} must be a string, or a list of parts of type text", param=where
        )
    for part in content:
        if part.type != "text" or part.text is None:
            raise RefusedError(
                f"{where} has a part of type {part.type[:40]!a}; this model reads text only",
                param=where,
            )
    return "".join(part.text or "" for part in content)
