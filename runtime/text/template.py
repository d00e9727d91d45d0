"""One chat template, in the language that transformers gives to them.

transformers renders templates with Jinja and adds to it: the tag `generation`, its own `tojson`, `dict`
and `namespace`, `raise_exception`, `strftime_now`, and loop controls. A prompt must not differ by one
character from the one that the model was trained on, so all of that is the same here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.utils import Namespace

from .template_budget import TemplateCostError
from .template_sandbox import BudgetEnvironment

MAX_SOURCE_CHARACTERS = 64 << 10
"""Longest template; the longest that are known have about 30,000."""

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message that is to be continued; transformers uses the same text."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names that the reasoning in a message goes by; the first one is what templates read."""

PASSED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables that every template gets from the arguments of `render`."""

_MAX_FORMAT = 200
_now: ContextVar[datetime | None] = ContextVar("now", default=None)


@contextmanager
def frozen_clock(now: datetime) -> Iterator[None]:
    """Have templates see `now` as the current time, so that a rendering can be repeated."""
    token = _now.set(now)
    try:
        yield
    finally:
        _now.reset(token)


class ChatTemplate:
    """One compiled template.

    Args:
        source: Jinja text.
        special_tokens: variables of the template, such as `bos_token`.

    Raises:
        Exception: whatever Jinja or Python raises for a text that is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateCostError(f"it has more than {MAX_SOURCE_CHARACTERS} characters")
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._environment = _environment()
        self._template = self._environment.from_string(source)

    def variables(self) -> set[str]:
        """Return the variables that the template reads and that nothing here gives to it."""
        known = PASSED | self._special_tokens.keys() | self._environment.globals.keys()
        return self.reads() - known

    def reads(self) -> set[str]:
        """Return all names that the template reads, such as `messages` and `tools`."""
        found = find_undeclared_variables(self._environment.parse(self.source))
        return {str(name) for name in found}

    def check_constants(self) -> None:
        """Compute the constant expressions, which Jinja without a budget computes when it compiles.

        Raises:
            TemplateCostError: one of them takes too many steps or too much memory.
        """
        tree = self._environment.parse(self.source)
        for node in tree.find_all((nodes.BinExpr, nodes.Concat, nodes.Filter, nodes.Test)):
            if not any(node.find_all((nodes.Name, nodes.Call))):
                alone = nodes.Template([nodes.Output([node])], lineno=1)
                try:
                    self._environment.from_string(alone).render()
                except TemplateCostError:
                    raise
                except Exception:  # noqa: BLE001, S112  a rendering shows it, if it gets there
                    continue

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
    ) -> str:
        """Return the prompt; arguments and result are those of transformers' `apply_chat_template`.

        Raises:
            TemplateCostError: the rendering takes too many steps or too much memory.
            Exception: whatever else the template raises, and ValueError if the last message cannot
                be continued.
        """
        chat = [_with_reasoning_names(message) for message in messages]
        final = ""
        if continue_final_message:
            named = isinstance(continue_final_message, str)
            final = self._tag(chat, str(continue_final_message) if named else "content")
        text = self._template.render(
            messages=chat,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            **{**self._special_tokens, **(template_args or {})},
        )
        return _cut_after(text, final) if continue_final_message else text

    def _tag(self, chat: list[dict[str, Any]], field: str) -> str:
        """Mark the end of the text in `field` of the last message, and return that text."""
        message = chat[-1]
        final = message.get(field)
        if final is None:
            raise ValueError(f"the last message has no '{field}' to continue")
        fields = [field]
        if field in REASONING_FIELDS:
            fields = [name for name in REASONING_FIELDS if message.get(name) == final]
        if not any(name in self.source for name in fields):
            raise ValueError(f"the template does not use '{field}'")
        if not isinstance(final, (list, tuple)):
            for name in fields:
                message[name] = final + CONTINUE_TAG
            return str(final)
        for i in reversed(range(len(final))):
            if "text" in final[i]:
                tagged = {**final[i], "text": final[i]["text"] + CONTINUE_TAG}
                message[field] = [*final[:i], tagged, *final[i + 1 :]]
                return str(final[i]["text"])
        raise ValueError("the last message has no text to continue")


def _with_reasoning_names(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without empty values, with the reasoning under each name that templates read."""
    known = {key: value for key, value in message.items() if value is not None}
    reasoning = next((known[name] for name in REASONING_FIELDS if name in known), None)
    if reasoning is None:
        return known
    return {"thinking": reasoning, **known, "reasoning_content": reasoning}


def _cut_after(text: str, final: str) -> str:
    tag = CONTINUE_TAG.strip()
    if final.strip() not in text or tag not in text:
        raise ValueError("the template does not write the last message as it is")
    end = text.rindex(tag)
    if text[end : end + len(CONTINUE_TAG)] == CONTINUE_TAG:
        return text[:end]
    return text[:end].rstrip()  # the template trims the message, so its last spaces go too


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's text for training and prints it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

    def _print(self, caller: Any) -> Any:
        return caller()


class _TemplateDict:
    """`dict` for templates, without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """`namespace` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: it begins with an underscore")


def _environment() -> BudgetEnvironment:
    environment = BudgetEnvironment([_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    return environment


@pass_context
def _raise_exception(context: Any, message: str) -> None:
    raise TemplateError(context.environment.pay_write(context, message))


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_FORMAT:
        raise TemplateCostError(f"a date has more than {_MAX_FORMAT} characters")
    return (_now.get() or datetime.now()).strftime(form)


@pass_context
def _tojson(
    context: Any,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    budget = context.budget
    budget.write(budget.size(value))
    spacing = (indent, separators)
    if budget.size(spacing) > _MAX_FORMAT or (isinstance(indent, int) and indent > _MAX_FORMAT):
        raise TemplateCostError(f"JSON is indented by more than {_MAX_FORMAT} characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces = []
    for piece in encoder.iterencode(value):
        budget.write(len(piece))
        pieces.append(piece)
    return "".join(pieces)
