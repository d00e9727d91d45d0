"""The chat format of a bundle: its templates by name, their special tokens, and how they are used.

It is one file of the bundle, `chat.json`:

    {"special_tokens": {"bos_token": "<s>", ...}, "templates": {"default": "...", "tool_use": "..."}}

Bundles of earlier versions have the one template itself, `chat_template.jinja`, with the special tokens
written into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from ...errors import BundleError, PromptError, UsageError
from ..bundle.json_input import read_json
from .messages import Message, MessageForm, check_messages, plain, shape, shown
from .template import PASSED, ChatTemplate

CHAT_FILE = "chat.json"
"""Name of the file in a bundle."""

MAX_CHAT_BYTES = 4 << 20
DEFAULT = "default"
TOOL_USE = "tool_use"

_HINT = "export the bundle again"
_PROBE = "PROBE-7c1e"
"""A text that no template writes by itself."""


class _ChatFile(Struct, forbid_unknown_fields=True):
    templates: dict[str, str]
    special_tokens: dict[str, str]


class ChatFormat:
    """Templates and special tokens of one checkpoint.

    A template that cannot be compiled is an error only when messages are rendered with it, so that
    plain text never needs one.

    Args:
        templates: Jinja texts by name.
        special_tokens: variables of the templates, such as `bos_token`.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.templates = dict(templates)
        self.special_tokens = dict(special_tokens)
        self._compiled: dict[str, _Compiled] = {}

    @classmethod
    def read(cls, path: Path) -> ChatFormat:
        """Read a `chat.json`, or the `chat_template.jinja` of an earlier version.

        Raises:
            BundleError: the file is damaged.
        """
        if path.suffix == ".jinja":
            try:
                return cls({DEFAULT: path.read_text(encoding="utf-8")}, {})
            except (OSError, ValueError) as error:
                raise BundleError(f"{path} cannot be read: {error}", hint=_HINT) from error
        found = read_json(path, _ChatFile, max_bytes=MAX_CHAT_BYTES, error=BundleError, hint=_HINT)
        return cls(found.templates, found.special_tokens)

    def to_json(self) -> str:
        """Return the contents of `chat.json`."""
        value = {"special_tokens": self.special_tokens, "templates": self.templates}
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    def compiled(self, name: str | None = None, *, tools: bool = False) -> ChatTemplate:
        """Return a template, chosen as transformers does: by name, for tools, or the default.

        Raises:
            UsageError: there is no such template.
            BundleError: the template cannot be compiled.
        """
        return self._choose(name, tools=tools).template

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
    ) -> str:
        """Return the text of a prompt; arguments and errors as in `TextCodec.encode_chat`."""
        if add_generation_prompt and continue_final_message:
            raise UsageError(
                "add_generation_prompt and continue_final_message contradict each other",
                hint="the first begins a new message, the second continues the last one",
            )
        checked = check_messages(messages)
        if add_generation_prompt is None:
            if checked[-1]["role"] == "assistant" and not continue_final_message:
                raise PromptError(
                    "the last message is the assistant's",
                    hint="continue_final_message continues it; add_generation_prompt begins another "
                    "answer after it",
                )
            add_generation_prompt = not continue_final_message
        arguments = plain(template_args or {}, "template_args")
        reserved = sorted(PASSED & arguments.keys())
        if reserved:
            raise UsageError(f"template_args cannot set {', '.join(reserved)}")
        chosen = self._choose(template, tools=tools is not None)
        try:
            return chosen.template.render(
                shape(checked, chosen.form),
                tools=_objects(tools, "tools"),
                documents=_objects(documents, "documents"),
                template_args=arguments,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except PromptError:
            raise
        except Exception as error:  # a template that adds a number to a text raises TypeError
            raise PromptError(
                f"the chat template refuses these messages: {shown(error)}",
                hint="the template of this model decides which roles, in which order, and which "
                "variables it takes",
            ) from error

    def form(self, template: str | None = None, *, tools: bool = False) -> MessageForm:
        """Return the form in which a template takes messages."""
        return self._choose(template, tools=tools).form

    def _choose(self, name: str | None, *, tools: bool) -> _Compiled:
        if name is None:
            name = TOOL_USE if tools and TOOL_USE in self.templates else DEFAULT
        if name not in self.templates:
            raise UsageError(
                f"this bundle has no chat template named {name[:40]!a}",
                hint=f"it has: {', '.join(sorted(self.templates))}",
            )
        if name not in self._compiled:
            self._compiled[name] = _Compiled(self._compile(name))
        return self._compiled[name]

    def _compile(self, name: str) -> ChatTemplate:
        try:
            return ChatTemplate(self.templates[name], self.special_tokens)
        except Exception as error:  # deep nesting, for one, ends in a RecursionError
            raise BundleError(
                f"the chat template {name!a} cannot be compiled: {shown(error)}",
                hint="pass the prompt as plain text",
            ) from error


class _Compiled:
    """A template, and what trying it has shown about it."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template

    @cached_property
    def form(self) -> MessageForm:
        text = self._shows([{"role": "user", "content": _PROBE}])
        parts = [{"type": "text", "text": _PROBE}, {"type": "text", "text": "-"}]
        called = {"name": _PROBE, "arguments": {_PROBE: "x"}}
        calls: list[dict[str, Any]] = [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": "x",
                "tool_calls": [{"id": "call00001", "type": "function", "function": called}],
            },
        ]
        return MessageForm(
            text=text,
            parts=self._shows([{"role": "user", "content": parts}]),
            developer="developer" in self.template.source,
            call_objects=repr(called["arguments"]) not in (self._renders(calls) or repr(called)),
        )

    def _shows(self, messages: list[dict[str, Any]]) -> bool:
        """Say whether the probe is printed, rather than a list as Python or JSON write it."""
        text = self._renders(messages) or ""
        return _PROBE in text and "'text'" not in text and '"text"' not in text

    def _renders(self, messages: list[dict[str, Any]]) -> str | None:
        try:
            return self.template.render(messages)
        except Exception:  # noqa: BLE001  the template refuses it, in whatever way
            return None


def _objects(values: Sequence[Mapping[str, Any]] | None, where: str) -> list[dict[str, Any]] | None:
    if values is None:
        return None
    found = plain(values, where)
    if not isinstance(found, list) or not all(isinstance(value, dict) for value in found):
        raise PromptError(f"{where} must be a list of objects")
    return found
