"""Text to tokens and back: the tokenizer and the chat format of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PromptError, PromptTooLongError, UsageError
from .detokenizer import TextStream, decode
from .messages import Message
from .reasoning import ReasoningMarks, ReasoningSplitter, is_open, marks_in
from .tokenizer import Reach, guarded, load_tokenizer

if TYPE_CHECKING:
    from .chat_format import ChatFormat


class TextCodec:
    """A bundle's tokenizer and chat format.

    Args:
        tokenizer: path of `tokenizer.json`.
        chat: path of `chat.json`, or of the `chat_template.jinja` of an earlier version, or None.
        capacity: tokens that fit; a text that certainly has more is refused before it is tokenised.
            None for no limit.

    Raises:
        BundleError: one of the files cannot be used.
    """

    def __init__(self, tokenizer: Path, chat: Path | None, capacity: int | None = None) -> None:
        self._tokenizer = load_tokenizer(tokenizer)
        self._reach = Reach(self._tokenizer)
        self._capacity = capacity
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token: facts.content for token, facts in added.items() if facts.special}
        self._chat = None if chat is None else _read_chat(chat)
        self.reasoning_marks = (
            None if self._chat is None else marks_in(self._chat.templates.values())
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether the bundle has a template for messages."""
        return self._chat is not None

    @property
    def chat(self) -> ChatFormat:
        """The chat format.

        Raises:
            UsageError: the bundle has none.
        """
        if self._chat is None:
            raise UsageError(
                "this bundle has no chat template, so it cannot take messages",
                hint="pass the prompt as plain text",
            )
        return self._chat

    @property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` itself, without truncation and padding: only to be read."""
        return self._tokenizer

    @property
    def reasoning_marks(self) -> ReasoningMarks | None:
        """The texts around the model's reasoning: those of the chat template, until they are set.

        Marks that are special tokens become part of the text, so that the reasoning can be told from
        the answer.
        """
        return self._marks

    @reasoning_marks.setter
    def reasoning_marks(self, marks: ReasoningMarks | None) -> None:
        self._marks = marks
        spelled = () if marks is None else (marks.begin, marks.end)
        self._hidden = {token for token, text in self._special.items() if text not in spelled}

    def split_reasoning(self, prompt: Sequence[int]) -> ReasoningSplitter | None:
        """Begin to split the output after `prompt` into reasoning and answer.

        Returns:
            None if nothing is known about the model's reasoning.
        """
        if self._marks is None:
            return None
        turn = len(prompt)
        while turn and prompt[turn - 1] not in self._hidden:
            turn -= 1
        # Without a token that begins a turn, a user's text cannot be told from the beginning of the
        # answer, except at the very end.
        tail = decode(self._tokenizer, prompt[turn:]).rstrip()
        inside = is_open(tail, self._marks) if turn else tail.endswith(self._marks.begin)
        return ReasoningSplitter(self._marks, inside=inside)

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """Id and spelling of the tokens that are no text: ends, turns, padding."""
        return self._special

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that are no text."""
        return tuple(self._special)

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text, with the special tokens that the tokenizer itself adds.

        Raises:
            PromptError: the text is not valid Unicode, is too long, or cannot be tokenised.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
    ) -> list[int]:
        """Render messages with the chat template and tokenise the result.

        Args:
            messages: the conversation, at least one message.
            tools: JSON schemas of functions, for a template that knows tools.
            documents: for a template that knows documents.
            template: name of one of the bundle's templates. None: the one for tools, if tools are
                given and there is one, else the default.
            template_args: values of the template's own variables, such as `enable_thinking`.
            add_generation_prompt: end the prompt with the beginning of an answer. None: do so, unless
                the last message is to be continued.
            continue_final_message: leave the last message open, so that the output continues it. A
                text names the field to continue (default: `content`).

        Raises:
            UsageError: the bundle has no such chat template, or the arguments contradict each other.
            PromptError: a message cannot be read, the template refuses the messages, or the last one
                is the assistant's and neither of the last two arguments says what to do with it.
            BundleError: the template cannot be compiled.
        """
        text = self.chat.render(
            messages,
            tools=tools,
            documents=documents,
            template=template,
            template_args=template_args,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        # The template writes the special tokens itself.
        return self._encode(text, add_special_tokens=False)

    def encode_rendered(self, text: str) -> list[int]:
        """Tokenise the text of a rendered prompt, which has its special tokens in it already."""
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair: bytes that were no UTF-8
            raise PromptError(
                f"the prompt is not valid Unicode: {error}", hint="pass text encoded as UTF-8"
            ) from error
        self._check_length(text)

        def failed(reason: str) -> PromptError:
            return PromptError(f"the tokenizer cannot read this prompt: {reason[:500]}")

        # As a batch of one: only then does the library let other threads run meanwhile.
        return guarded(
            lambda: list(
                self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[
                    0
                ].ids
            ),
            failed,
        )

    def _check_length(self, text: str) -> None:
        capacity = self._capacity
        if capacity is None or len(text) <= capacity:
            return
        least = self._reach.least_tokens(text)
        if least > capacity:
            raise PromptTooLongError(
                f"the prompt has at least {least} tokens, this bundle holds {capacity}",
                hint="shorten the prompt, or export again with a larger --capacity",
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without special tokens; marks of reasoning are text.

        Raises:
            UsageError: a number that is no token id.
        """
        return decode(self._tokenizer, [token for token in tokens if token not in self._hidden])

    def spelling(self, token: int) -> str:
        """Return how the vocabulary writes a token, special ones too; empty where it has none."""
        return self._tokenizer.id_to_token(token) or ""

    def stream(self, context: Sequence[int] = ()) -> TextStream:
        """Start to decode an output token by token, as the continuation of `context`."""
        return TextStream(self._tokenizer, self._hidden, context)


def import_text_libraries() -> None:
    """Import what a codec needs.

    For the main thread, before another one opens a codec: a signal in the middle of an import can leave
    Python's import lock taken, and a thread that imports then never ends.
    """
    for module in ("tokenizers", f"{__package__}.chat_format"):
        import_module(module)


def _read_chat(path: Path) -> ChatFormat:
    from .chat_format import ChatFormat  # imports jinja2

    return ChatFormat.read(path)
