"""What a client may ask, read from the JSON of OpenAI's two text APIs.

Nothing is ignored that would change the output: a field that is unknown or not supported is refused,
unless it has the value that means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..decoding.session import DraftLength, Mode, Prompt
from ..sampling.declaration import OptionError
from ..sampling.params import SamplingParams
from .fields import Fields
from .refusals import RefusedError

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
"""Fields that change nothing in the text of an answer; whatever they say is accepted."""

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
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
}
"""Fields that are known and not supported, each with the values at which it changes nothing here."""

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of messages; `developer` is what newer clients call `system`."""


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing.

    Attributes:
        model: the one model's name.
        temperature: 0 is greedy.
        mode: `strict` or `collab`.
        threshold: of `collab`; None for the bundle's own.
        num_draft_tokens: None for the bundle's own.
    """

    model: str
    temperature: float = 0.0
    mode: Mode = "strict"
    threshold: float | None = None
    num_draft_tokens: DraftLength = None


@dataclass(frozen=True)
class Request:
    """One request, checked as far as that goes without the bundle.

    Attributes:
        prompt: text or messages.
        sampling: how tokens are chosen, stop texts, log-probabilities.
        max_tokens: None for the bundle's default.
        mode: `strict` or `collab`.
        threshold: of `collab`.
        num_draft_tokens: per round; None for the bundle's own.
        stream: answer with events.
        include_usage: end the events with the usage.
    """

    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int | None
    mode: Mode
    threshold: float | None
    num_draft_tokens: DraftLength
    stream: bool
    include_usage: bool


def chat_request(body: Mapping[str, Any], defaults: Defaults) -> Request:
    """Read the body of `/v1/chat/completions`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(body)
    prompt = _messages(fields.take("messages"))
    wanted = fields.boolean("logprobs", False)
    top = fields.integer("top_logprobs")
    if top is not None and not wanted:
        raise RefusedError("top_logprobs needs logprobs: true", param="top_logprobs")
    return _request(fields, prompt, (top or 0) if wanted else None, defaults)


def completion_request(body: Mapping[str, Any], defaults: Defaults) -> Request:
    """Read the body of `/v1/completions`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(body)
    prompt = fields.take("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise RefusedError(
            "prompt is a list: several prompts, or tokens, are not supported; send one text",
            param="prompt",
        )
    if not isinstance(prompt, str):
        raise RefusedError("prompt must be a text", param="prompt")
    return _request(fields, prompt, fields.integer("logprobs"), defaults)


def _request(fields: Fields, prompt: Prompt, logprobs: int | None, defaults: Defaults) -> Request:
    """Read what both APIs share, and refuse what is left."""
    _check_model(fields, defaults.model)
    stream = fields.boolean("stream", False)
    options = fields.take("stream_options")
    mode = fields.choice("mode", ("strict", "collab")) or defaults.mode
    threshold = fields.number("threshold")
    if threshold is None and mode == "collab":
        threshold = defaults.threshold
    length = fields.take("num_draft_tokens")
    if length is not None and length != "auto":
        length = fields.as_integer("num_draft_tokens", length)
    sampling = _sampling(fields, logprobs, defaults.temperature)
    max_tokens = _max_tokens(fields)
    if max_tokens is not None and sampling.min_tokens > max_tokens:
        raise RefusedError(
            f"min_tokens is {sampling.min_tokens}, above max_tokens, {max_tokens}",
            param="min_tokens",
        )
    fields.finish(UNSUPPORTED, HARMLESS)
    return Request(
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        mode=cast("Mode", mode),
        threshold=threshold,
        num_draft_tokens=defaults.num_draft_tokens if length is None else length,
        stream=stream,
        include_usage=_include_usage(options, stream=stream),
    )


def _check_model(fields: Fields, served: str) -> None:
    model = fields.text("model")
    if model is not None and model != served:
        raise RefusedError(
            f"the model '{model[:100]}' is not here; this server has '{served}'",
            status=404,
            param="model",
            code="model_not_found",
        )


def _include_usage(options: Any, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise RefusedError("stream_options needs stream: true", param="stream_options")
    if not isinstance(options, dict):
        raise RefusedError("stream_options must be an object", param="stream_options")
    fields = Fields(options, within="stream_options.")
    wanted = fields.boolean("include_usage", False)
    fields.finish({"include_obfuscation": (False,), "continuous_usage_stats": (False,)})
    return wanted


def _max_tokens(fields: Fields) -> int | None:
    """Return the limit under either of its two names."""
    old, new = fields.integer("max_tokens"), fields.integer("max_completion_tokens")
    if None not in (old, new) and old != new:
        raise RefusedError(
            f"max_tokens is {old} and max_completion_tokens is {new}; they mean the same",
            param="max_tokens",
        )
    for name, value in (("max_tokens", old), ("max_completion_tokens", new)):
        if value is not None and value < 1:
            raise RefusedError(f"{name} is {value}, but must be at least 1", param=name)
    return old if new is None else new


def _sampling(fields: Fields, logprobs: int | None, temperature: float) -> SamplingParams:
    top_k = fields.integer("top_k")
    try:
        return SamplingParams(
            temperature=fields.number("temperature", temperature),
            top_k=0 if top_k is None or top_k == -1 else top_k,  # vLLM's -1 is all tokens as well
            top_p=fields.number("top_p", 1.0),
            min_p=fields.number("min_p", 0.0),
            repetition_penalty=fields.number("repetition_penalty", 1.0),
            presence_penalty=fields.number("presence_penalty", 0.0),
            frequency_penalty=fields.number("frequency_penalty", 0.0),
            logit_bias=_logit_bias(fields.take("logit_bias")),
            seed=fields.integer("seed"),
            min_tokens=fields.integer("min_tokens", 0),
            stop=_stop(fields.take("stop")),
            logprobs=logprobs,
        )
    except OptionError as error:
        text = error.message if error.hint is None else f"{error.message}. {error.hint}"
        raise RefusedError(text, param=error.option) from error


def _logit_bias(value: Any) -> dict[int, float]:
    """Token ids are keys, so JSON makes texts of them."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RefusedError("logit_bias must map token ids to numbers", param="logit_bias")
    result = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal()):
            raise RefusedError(
                f"logit_bias names {token[:40]!a}, not a token id", param="logit_bias"
            )
        if isinstance(bias, bool) or not isinstance(bias, (int, float)):
            raise RefusedError(f"the logit_bias of {token} must be a number", param="logit_bias")
        result[int(token)] = float(bias)
    return result


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise RefusedError("stop must be a text or a list of texts", param="stop")
    return tuple(stops)


def _messages(value: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RefusedError("messages must be a list with at least one message", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RefusedError(f"{where} must be an object with role and content", param=where)
    fields = Fields(message, within=f"{where}.")
    role = fields.choice("role", tuple(ROLES))
    if role is None:
        raise RefusedError(f"{where} has no role", param=f"{where}.role")
    read = {"role": ROLES[role], "content": _content(fields.take("content"), f"{where}.content")}
    name = fields.text("name")  # for the chat template, which may use it
    fields.finish(
        {"tool_calls": ([],), "function_call": (), "tool_call_id": (), "audio": (), "refusal": ()}
    )
    return read if name is None else {**read, "name": name}


def _content(value: Any, where: str) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise RefusedError(f"{where} must be a text, or a list of parts of type text", param=where)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else None
            raise RefusedError(
                f"{where} has a part of type {kind!r}; this model reads text only", param=where
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise RefusedError(f"{where}: a part looks like {{'type', 'text'}}", param=where)
    return "".join(part["text"] for part in value)
