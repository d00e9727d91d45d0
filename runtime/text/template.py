"""Chat templates, in the language that transformers gives to them.

A template comes with a checkpoint, so it is untrusted and runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .messages import Message

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message that is to be continued; transformers uses the same text."""


class ChatTemplate:
    """One compiled template.

    Args:
        source: Jinja text.
        special_tokens: variables of the template, such as `bos_token`.

    Raises:
        jinja2.TemplateError: the text is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._template = _environment().from_string(source)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        template_args: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool | str,
    ) -> str:
        """Return the prompt; the arguments are those of transformers' `apply_chat_template`.

        Raises:
            Exception: whatever the template raises, and ValueError if the last message cannot be
                continued.
        """
        chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
        variables = {**self._special_tokens, **template_args}
        final = ""
        if continue_final_message:
            field = continue_final_message if isinstance(continue_final_message, str) else "content"
            final = self._tag_final_message(chat, field)
        text = str(
            self._template.render(
                messages=chat,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        )
        return _cut_after(text, final) if continue_final_message else text

    def _tag_final_message(self, chat: list[dict[str, Any]], field: str) -> str:
        final = chat[-1].get(field)
        if final is None:
            raise ValueError(f"the last message has no {field} to continue")
        if field not in self.source:
            raise ValueError(f"the chat template does not use {field}")
        if isinstance(final, str):
            chat[-1][field] = final + CONTINUE_TAG
            return final
        for i in reversed(range(len(final))):
            if "text" in final[i]:
                text = str(final[i]["text"])
                tagged = {**final[i], "text": text + CONTINUE_TAG}
                chat[-1][field] = [*final[:i], tagged, *final[i + 1 :]]
                return text
        raise ValueError("the last message has no text to continue")


def _cut_after(text: str, final: str) -> str:
    tag = CONTINUE_TAG.strip()
    if final.strip() not in text or tag not in text:
        raise ValueError("the chat template does not write the last message as it is")
    end = text.rindex(tag)
    if text[end : end + len(CONTINUE_TAG)] == CONTINUE_TAG:
        return text[:end]
    return text[:end].rstrip()  # the template trims the message, so its last spaces go too


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node, Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}`, which marks the assistant's text for training and prints it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
