"""Text to tokens and back: the tokenizer and the chat template of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import BundleError, PromptError, UsageError
from .detokenizer import TextStream
from .messages import Message
from .template import ChatTemplate


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
        self._template = None if chat_template is None else _read_template(chat_template)

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

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
    ) -> list[int]:
        """Render `messages` with the chat template and tokenise the result.

        Args:
            messages: the conversation, at least one message.
            tools: JSON schemas of functions, for a template that knows tools.
            documents: for a template that knows documents.
            template_args: values of the template's own variables, such as `enable_thinking`.
            add_generation_prompt: end the prompt with the beginning of an answer. None: do so unless
                the last message is to be continued.
            continue_final_message: leave the last message open, so that the output continues it. A
                text names the field to continue (default: `content`).

        Raises:
            UsageError: the bundle has no chat template, or the arguments contradict each other.
            PromptError: the template refuses these messages, or they are not valid Unicode.
        """
        if self._template is None:
            raise UsageError(
                "this bundle has no chat template, so it cannot take messages",
                hint="pass the prompt as plain text",
            )
        if add_generation_prompt and continue_final_message:
            raise UsageError(
                "add_generation_prompt and continue_final_message contradict each other",
                hint="the first begins a new message, the second continues the last one",
            )
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        try:
            text = self._template.render(
                messages,
                tools,
                documents,
                template_args or {},
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
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


def _read_template(path: Path) -> ChatTemplate:
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), {})
    except Exception as error:  # deep nesting, for one, ends in a RecursionError
        raise BundleError(
            f"{path} is not a usable chat template: {error}", hint="export the bundle again"
        ) from error
