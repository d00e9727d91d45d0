"""Text in, text out: tokenizer, chat template, and decoding that never prints half a character."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import BundleError, PromptError, UsageError

Message = Mapping[str, Any]

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How tokenizers with byte fallback spell the bytes of what they have no token for."""


class TextCodec:
    """A bundle's tokenizer and chat template.

    Args:
        tokenizer: path of `tokenizer.json`.
        chat_template: path of `chat_template.jinja`, or None.

    Raises:
        BundleError: one of the files cannot be used.
    """

    def __init__(self, tokenizer: Path, chat_template: Path | None) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:
            raise BundleError(
                f"{tokenizer} cannot be used: {error}",
                hint="it may need a newer 'tokenizers'; otherwise export the bundle again",
            ) from error
        # A tokenizer.json may ask for truncation or padding, which would change prompts in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, facts in added.items() if facts.special)
        self._template = None if chat_template is None else _compile(chat_template)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._template is not None

    @property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` itself, without truncation and padding: only to be read."""
        return self._tokenizer

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that are no text: ends, turns, padding."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(token for token, entry in added.items() if entry.special)

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text, with the special tokens that the tokenizer itself adds.

        Raises:
            PromptError: the text is not valid Unicode.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Render `messages` with the chat template and tokenise the result.

        Raises:
            UsageError: the bundle has no chat template.
            PromptError: the template refuses these messages, or they are not valid Unicode.
        """
        if self._template is None:
            raise UsageError(
                "this bundle has no chat template, so it cannot take messages",
                hint="pass the prompt as plain text",
            )
        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True)
        except Exception as error:  # a template that adds a number to a string raises TypeError
            raise PromptError(
                f"the chat template refuses these messages: {error}",
                hint='messages look like [{"role": "user", "content": "..."}]',
            ) from error
        # The template writes the special tokens itself.
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair: bytes that were no UTF-8
            raise PromptError(
                f"the prompt is not valid Unicode: {error}", hint="pass text encoded as UTF-8"
            ) from error
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def spelling(self, token: int) -> str:
        """Return how the vocabulary writes a token, special ones too; empty where it has none."""
        return self._tokenizer.id_to_token(token) or ""

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """Start to decode an output token by token, as the continuation of `context`."""
        return TextStream(self._tokenizer, self._special, context)


class TextStream:
    """Decodes a growing output; the pieces joined are what it adds to the text of its context.

    A tokenizer that writes spaces as part of words drops the one in front of a text, so a word that
    begins an output keeps its space only when it is decoded behind its prompt. `DecodeStream` of
    tokenizers is not used: it raises when bytes that are no UTF-8 follow a character made of bytes.
    """

    def __init__(self, tokenizer: Any, special: Collection[int], context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._context = [token for token in context if token not in special]
        self._context_size = len(self._decode(self._context))
        self._pending: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """Add `tokens` and return the text that is now certain."""
        return "".join(self._push(token) for token in tokens)

    def finish(self) -> str:
        """Return what is left: an output may end in the middle of a character."""
        return self._settle(self._decode(self._context + self._pending))

    def _push(self, token: int) -> str:
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None or token in self._special:  # a padded vocabulary has ids without text
            return ""
        self._pending.append(token)
        if BYTE_TOKEN.fullmatch(
            spelling
        ):  # decoded as one run, and one wrong byte spoils all of it
            return ""
        text = self._decode(self._context + self._pending)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._settle(text)

    def _settle(self, text: str) -> str:
        """Take what is pending as the context of the rest, and return its text."""
        new = text[self._context_size :]
        if new:
            self._context = self._pending
            self._context_size = len(self._decode(self._context))
            self._pending = []
        return new

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))


def _compile(path: Path) -> Any:
    """Compile a chat template in Jinja's sandbox: it came with a checkpoint, so it is untrusted."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    # The two helpers that templates of the Hugging Face hub expect.
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except Exception as error:  # deep nesting, for one, ends in a RecursionError
        raise BundleError(
            f"{path} is not a usable chat template: {error}", hint="export the bundle again"
        ) from error
