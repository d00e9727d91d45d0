"""The text gate: the runtime makes the very prompts that the checkpoint's own library makes.

A model is trained on prompts that transformers rendered and tokenised. Another space, another quotation
mark or a special token cut into pieces is another prompt, and the output gets worse without any error.
So a fixed set of texts and conversations goes through both, and what differs is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from ..errors import GateError, PromptError
from ..models.hf import quiet
from ..runtime.text.chat_format import CHAT_FILE, DEFAULT, ChatFormat
from ..runtime.text.codec import TextCodec
from ..runtime.text.messages import check_messages, shape
from ..runtime.text.reference import RECORD_FILE, Case, Record, compare
from ..runtime.text.template_budget import TemplateCostError
from ..runtime.text.tokenizer import guarded
from .conversations import CONVERSATIONS, DOCUMENTS, TEXTS, TOOLS, VALUES, WITH_VARIABLES

MAX_SPECIAL = 16
"""Special tokens that texts spell out: the first of the checkpoint's."""

_WITHOUT_CHAT = "--no-chat-template exports the bundle for plain text only"


def chat_format(tokenizer: Any) -> ChatFormat | None:
    """Return the chat templates of a tokenizer of transformers, or None if it has none."""
    templates = tokenizer.chat_template
    if not templates:
        return None
    if not isinstance(templates, dict):
        templates = {DEFAULT: templates}
    return ChatFormat(templates, tokenizer.special_tokens_map)


def write_chat(folder: Path, tokenizer: Any, name: str) -> str | None:
    """Write the chat format of a checkpoint, and return the name of the file; None if it has none.

    Raises:
        GateError: a template cannot be compiled, or has constants that take too long to compute.
    """
    chat = chat_format(tokenizer)
    if chat is None:
        return None
    for template in chat.templates:
        try:
            chat.compiled(template).check_constants()
        except Exception as error:
            raise GateError(
                f"{name}: {getattr(error, 'message', error)}", hint=_WITHOUT_CHAT
            ) from error
    try:
        (folder / CHAT_FILE).write_text(chat.to_json(), encoding="utf-8")
    except UnicodeEncodeError as error:
        raise GateError(
            f"{name}: its chat template is not valid Unicode", hint=_WITHOUT_CHAT
        ) from error
    return CHAT_FILE


def check_text(folder: Path, codec: TextCodec, tokenizer: Any, name: str) -> dict[str, Any]:
    """Compare the runtime's texts and prompts with transformers', and write the record of it.

    Args:
        folder: the bundle that is being written.
        codec: made of the bundle's files.
        tokenizer: of transformers, made of the checkpoint.
        name: of the checkpoint, for errors.

    Returns:
        The certificate's section on text.

    Raises:
        GateError: names the first difference.
    """
    now = datetime.now().replace(microsecond=0)
    try:
        with quiet(), _clock_of_transformers(now):
            cases = [_plain(tokenizer, what, text) for what, text in _texts(codec)]
            if codec.has_chat_template:
                cases += [_chat(codec, tokenizer, *chat) for chat in _chats(codec)]
        record = Record(version("transformers"), now.isoformat(), cases)
        compare(codec, record)
    except GateError as error:
        hint = _WITHOUT_CHAT if codec.has_chat_template else None
        raise GateError(f"{name}: the text gate: {error.message}", hint=hint) from None
    (folder / RECORD_FILE).write_bytes(record.to_json())
    return record.counts()


def _texts(codec: TextCodec) -> Iterator[tuple[str, str]]:
    yield from TEXTS.items()
    for special in list(codec.special_tokens.values())[:MAX_SPECIAL]:
        yield f"a text that spells {special!a}", f"a{special}b {special} c{special}{special}\n"


def _chats(codec: TextCodec) -> Iterator[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Yield every conversation with every set of arguments."""
    for template in codec.chat.templates:
        named = {} if template == DEFAULT else {"template": template}
        source = codec.chat.templates[template]
        talks = dict(CONVERSATIONS)
        for special in list(codec.special_tokens.values())[:MAX_SPECIAL]:
            text = f"a{special}b {special}"
            talks[f"a message that spells {special!a}"] = [{"role": "user", "content": text}]
        for what, messages in talks.items():
            last = messages[-1]["role"] == "assistant"
            ends: list[dict[str, Any]] = [{"add_generation_prompt": True}]
            ends += [{"add_generation_prompt": False}]
            ends += [{"continue_final_message": True}] if last else []
            for end in ends:
                yield what, messages, {**named, **end}
            if "tools" in source:
                yield f"{what}, with tools", messages, {**named, **ends[0], "tools": TOOLS}
            if "documents" in source:
                documents = {**ends[0], "documents": DOCUMENTS}
                yield f"{what}, with documents", messages, {**named, **documents}
        for variable in sorted(codec.chat.compiled(template).variables()):
            for value in VALUES:
                arguments = {
                    **named,
                    "add_generation_prompt": True,
                    "template_args": {variable: value},
                }
                for what in WITH_VARIABLES:
                    yield f"{what}, with {variable}={value!r}", CONVERSATIONS[what], arguments


def _plain(tokenizer: Any, what: str, text: str) -> Case:
    try:
        ids = _ids(tokenizer, text, add_special_tokens=True)
    except _RefusedError as error:
        return Case(what, text, refused=str(error))
    return Case(what, text, ids)


class _RefusedError(Exception):
    """transformers refuses a text or a conversation."""


def _refused(reason: str) -> _RefusedError:
    return _RefusedError(reason[:500])


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    return guarded(
        lambda: list(tokenizer(text, add_special_tokens=add_special_tokens).input_ids), _refused
    )


def _chat(
    codec: TextCodec,
    tokenizer: Any,
    what: str,
    messages: list[dict[str, Any]],
    arguments: dict[str, Any],
) -> Case:
    """Have transformers render and tokenise a conversation.

    The runtime renders it first: what takes too long here never reaches transformers, which has no
    limit.
    """
    try:
        codec.chat.render(messages, **arguments)
    except PromptError as error:
        if isinstance(error.__cause__, TemplateCostError):
            raise GateError(f"{what}: {error.message}") from error
    given = dict(arguments)
    name, tools = given.pop("template", None), given.get("tools")
    variables = given.pop("template_args", {})
    form = codec.chat.form(name, tools=tools is not None)
    shaped = shape(check_messages(messages), form)
    try:
        text = guarded(
            lambda: tokenizer.apply_chat_template(
                shaped, chat_template=name, tokenize=False, **given, **variables
            ),
            _refused,
        )
        ids = _ids(tokenizer, text, add_special_tokens=False)
    except _RefusedError as error:
        return Case(what, messages=messages, arguments=arguments, refused=str(error))
    return Case(what, text, ids, messages, arguments)


def _clock_of_transformers(now: datetime) -> Any:
    """Have transformers' templates see `now` as the current time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now

    return mock.patch("transformers.utils.chat_template_utils.datetime", Clock)
