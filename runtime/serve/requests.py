"""What a client may ask, read from the JSON of OpenAI's two text APIs.

Nothing that would change the output is ignored: a field that is unknown or not supported is refused,
unless it has a value at which it has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..decoding.options import GenerationOptions
from ..decoding.prompt import Prompt
from ..sampling.declaration import OptionError, options_of
from .constraints import read_constraint
from .fields import Fields
from .refusals import RefusedError, text_of, unknown_model
from .tool_use import ToolUse, read_tool_use

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
    "echo": (False,),
    "guided_decoding_backend": (),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "verbosity": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
}
"""Fields that are known and not supported, each with the values at which it has no effect here."""

MAX_CHOICES = 128
"""Largest number of choices of one request."""


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
        prompts: texts, token ids or messages.
        options: of the generations.
        n: choices for each prompt.
        echo: put the prompt in front of the output.
        writes: generate at all; False for `max_tokens: 0`, which only makes sense with echo.
        stream: answer with events.
        include_usage: end the events with the usage.
        details: report who chose each token, and the statistics.
        trace: report a page that shows each round.
        tool_use: tools that the model may call.
        separates_reasoning: return the reasoning of a thinking model apart from its answer.
        echoed: fields that the answer repeats.
    """

    prompts: Sequence[Prompt]
    options: GenerationOptions
    n: int = 1
    echo: bool = False
    writes: bool = True
    stream: bool = False
    include_usage: bool = False
    details: bool = False
    trace: bool = False
    tool_use: ToolUse | None = None
    separates_reasoning: bool = True
    echoed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reports_logprobs(self) -> bool:
        """Whether the answer contains log-probabilities."""
        return self.options.logprobs is not None

    def options_of_choice(self, index: int) -> GenerationOptions:
        """Return the options of one choice: the choices of a prompt have successive seeds."""
        seed = self.options.seed
        return self.options if seed is None else replace(self.options, seed=seed + index % self.n)


def chat_request(data: bytes, defaults: Defaults) -> Request:
    """Read the body of `/v1/chat/completions`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    messages = fields.take("messages", list[Any])
    if not messages:
        raise RefusedError("messages must be a list with at least one message", param="messages")
    wanted = fields.take("logprobs", bool)
    top = fields.take("top_logprobs")
    if top and not wanted:
        raise RefusedError("top_logprobs needs logprobs: true", param="top_logprobs")
    logprobs = {"top_logprobs": (top or 0) if wanted else None}
    separates = fields.take("separate_reasoning", bool)
    return finish_request(
        fields,
        [messages],
        defaults,
        logprobs,
        tool_use=read_tool_use(fields),
        separates_reasoning=separates is not False,
    )


def completion_request(data: bytes, defaults: Defaults) -> Request:
    """Read the body of `/v1/completions`.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    prompt = fields.take("prompt", str | list[str | int | list[int]])
    prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
    if not prompts or not all(isinstance(one, str) or _is_ids(one) for one in prompts):
        raise RefusedError(
            "prompt must be a text, a list of token ids, or a list of those", param="prompt"
        )
    echo = fields.take("echo", bool) or False
    writes = not (echo and fields.has("max_tokens", b"0"))
    if not writes:
        fields.take("max_tokens")
    logprobs = {"logprobs": fields.take("logprobs")}
    return finish_request(fields, prompts, defaults, logprobs, echo=echo, writes=writes)


def finish_request(
    fields: Fields,
    prompts: Sequence[Prompt],
    defaults: Defaults,
    logprobs: Mapping[str, Any],
    *,
    unsupported: Mapping[str, tuple[Any, ...]] = UNSUPPORTED,
    constraint: Mapping[str, Any] | None = None,
    tool_use: ToolUse | None = None,
    **settings: Any,
) -> Request:
    """Read what all APIs share, and refuse what is left.

    Args:
        fields: of the body.
        prompts: of the request.
        defaults: of the server.
        logprobs: the number of log-probabilities, by the name of its field in this API.
        unsupported: see `Fields.finish`.
        constraint: generation options of the constraint; None reads them.
        tool_use: tools that the model may call.
        settings: further fields of the request.

    Raises:
        RefusedError: names the field.
    """
    _check_model(fields, defaults)
    n = fields.take("n", int)
    count = 1 if n is None else n
    if not 1 <= count * len(prompts) <= MAX_CHOICES:
        raise RefusedError(
            f"n is {count} and there are {len(prompts)} prompts, but an answer has from 1 to "
            f"{MAX_CHOICES} choices",
            param="prompt" if n is None else "n",
        )
    stream = fields.take("stream", bool) or False
    include_usage = _include_usage(fields, stream=stream)
    options = _options(fields, logprobs, defaults.options)
    options = options.updated(read_constraint(fields) if constraint is None else constraint)
    effort = fields.take("reasoning_effort", str)
    if effort is not None:
        variables = {"reasoning_effort": effort, **options.template_args}
        options = replace(options, template_args=variables)
    if tool_use is not None:
        options = replace(options, tools=tool_use.schemas)
    details, trace = (fields.take(name, bool) or False for name in ("details", "trace"))
    fields.finish({"best_of": (1, count), **unsupported}, HARMLESS)
    return Request(
        prompts,
        options,
        n=count,
        stream=stream,
        include_usage=include_usage,
        details=details,
        trace=trace,
        tool_use=tool_use,
        **settings,
    )


def tokenize_request(data: bytes, defaults: Defaults) -> tuple[Request, bool]:
    """Read the body of `/tokenize`: return it, and whether the tokens are to be spelled.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    _check_model(fields, defaults)
    is_spelled = fields.take("return_token_strs", bool) or False
    prompt = fields.take("messages", list[Any]) or fields.take("prompt", str)
    if prompt is None:
        raise fields.missing("prompt")
    options = _options(fields, {}, defaults.options)
    fields.finish({"add_special_tokens": (True,)})
    return Request([prompt], options), is_spelled


def detokenize_request(data: bytes, defaults: Defaults) -> list[int]:
    """Read the body of `/detokenize`: return the token ids.

    Raises:
        RefusedError: names the field.
    """
    fields = Fields(data)
    _check_model(fields, defaults)
    tokens: list[int] | None = fields.take("tokens", list[int])
    if tokens is None:
        raise fields.missing("tokens")
    fields.finish({})
    return tokens


def _check_model(fields: Fields, defaults: Defaults) -> None:
    model = fields.take("model", str)
    if model is not None and model != defaults.model:
        raise unknown_model(model, defaults.model)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _include_usage(fields: Fields, *, stream: bool) -> bool:
    if not fields.has("stream_options"):
        return False
    if not stream:
        raise RefusedError("stream_options needs stream: true", param="stream_options")
    options = fields.inside("stream_options")
    wanted = options.take("include_usage", bool)
    options.finish({"include_obfuscation": (False,), "continuous_usage_stats": (False,)})
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
    if given.get("mode") == "strict" and defaults.mode == "collab":
        defaults = replace(defaults, threshold=None)
    read: dict[str, Any] = {}
    for name, value in given.items():
        option = declared[names[name]]
        try:
            new = option.read(value)
        except OptionError as error:
            text = text_of(error).replace(option.name, fields.path(name), 1)
            raise RefusedError(text, param=fields.path(name)) from None
        if read.setdefault(option.name, new) != new:
            raise RefusedError(f"{option.name} and {name} differ", param=option.name)
    options = defaults.updated(read)
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise RefusedError(
            f"min_tokens is {options.min_tokens}, above max_tokens, {options.max_tokens}",
            param="min_tokens",
        )
    return options
