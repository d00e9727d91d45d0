"""Text in, text out: tokenizer, chat template, and decoding that never prints half a character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import BundleError, PromptError, UsageError

Message = Mapping[str, Any]


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
        self._template = None if chat_template is None else _compile(chat_template)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text, with the special tokens that the tokenizer itself adds."""
        return list(self._tokenizer.encode(text).ids)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Render `messages` with the chat template and tokenise the result.

        Raises:
            UsageError: the bundle has no chat template.
            PromptError: the template refuses these messages.
        """
        if self._template is None:
            raise UsageError(
                "this bundle has no chat template, so it cannot take messages",
                hint="pass the prompt as plain text",
            )
        import jinja2

        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise PromptError(
                f"the chat template refuses these messages: {error}",
                hint='messages look like [{"role": "user", "content": "..."}]',
            ) from error
        # The template writes the special tokens itself.
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """Start to decode an output token by token."""
        return TextStream(self._tokenizer)


class TextStream:
    """Decodes a growing output; the pieces joined are exactly `TextCodec.decode` of all tokens."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._written = 0

    def push(self, tokens: Sequence[int]) -> str:
        """Add `tokens` and return the text that is now certain."""
        self._tokens += tokens
        pieces = [self._stream.step(self._tokenizer, token) for token in tokens]
        text = "".join(piece for piece in pieces if piece is not None)
        self._written += len(text)
        return text

    def finish(self) -> str:
        """Return what is left: an output may end in the middle of a character."""
        whole = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        return whole[self._written :]


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
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is not a usable chat template: {error}", hint="export the bundle again"
        ) from error
