"""Answers: what they contain, and how they are sent, for all APIs."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from ..decoding.completion import Piece, Stream
from ..decoding.loop import FinishReason
from ..decoding.stats import GenerationStats
from ..text.reasoning import ReasoningSplitter
from ..text.tool_call_reader import CallPart, ToolCallReader
from .refusals import RefusedError
from .requests import Request
from .token_text import TokenTexts

FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "capacity": "length",
}
"""OpenAI's finish reasons. Cancelled and timed-out generations have none: they are errors."""


def finish_reason_of(stream: Stream) -> str:
    """Return OpenAI's finish reason of a generation that has ended.

    A stop text within an unfinished structure is `length`: the output is incomplete, and clients that
    parse it look at that.
    """
    assert stream.finish_reason is not None, "it has ended"
    return "length" if stream.is_complete is False else FINISH_REASONS[stream.finish_reason]


@dataclass(frozen=True)
class Form:
    """What an answer contains.

    Attributes:
        model: name of the model.
        fingerprint: of the bundle; the same seed gives the same answer only with the same bundle.
        texts: text and bytes of single tokens.
        request: that is answered.
        show_cached: the usage says how many tokens of the prompts were found in a cache.
        splitter: returns what splits the output after a prompt into reasoning and answer, if anything.
        calls: returns what finds calls of tools in the output; None without tools.
    """

    model: str
    fingerprint: str
    texts: TokenTexts
    request: Request
    show_cached: bool = True
    splitter: Callable[[Sequence[int]], ReasoningSplitter | None] = lambda prompt: None
    calls: Callable[[], ToolCallReader] | None = None


@dataclass
class Usage:
    """Tokens that an answer cost."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def add(self, stats: GenerationStats, *, counts_prompt: bool) -> None:
        """Add a generation; with its prompt, unless an earlier one had the same."""
        self.generated += stats.num_generated_tokens
        if counts_prompt:
            self.prompt += stats.num_prompt_tokens
            self.cached += stats.num_cached_tokens


class OutputSplitter:
    """Splits an output into reasoning, text and calls of tools.

    Args:
        form: of the answer.
        prompt: tokens before the output.
    """

    def __init__(self, form: Form, prompt: Sequence[int]) -> None:
        self._reasoning = form.splitter(prompt)
        self._calls = None if form.calls is None else form.calls()

    def push(self, text: str) -> tuple[str, str, list[CallPart]]:
        """Add text; return what is certain of each kind."""
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
        said, calls = (text, []) if self._calls is None else self._calls.push(text)
        return reasoning, said, calls

    def finish(self) -> tuple[str, str, list[CallPart]]:
        """Return what was held back."""
        reasoning, text = ("", "") if self._reasoning is None else self._reasoning.finish()
        if self._calls is None:
            return reasoning, text, []
        said, calls = self._calls.push(text)
        rest, more = self._calls.finish()
        return reasoning, said + rest, calls + more


def make_id(prefix: str) -> str:
    """Return a new id, such as `chatcmpl-3f...`."""
    return f"{prefix}-{secrets.token_hex(12)}"


class Answer(ABC):
    """Forms the answer of one request. Its choices are written one after the other.

    Args:
        form: what it contains.
    """

    ending: ClassVar[bytes] = b"data: [DONE]\n\n"
    """Last event of a stream."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._usage = Usage()

    @abstractmethod
    def open(self, index: int, prompt: Sequence[int]) -> list[dict[str, Any]]:
        """Begin a choice, and return its first chunks.

        Args:
            index: number of the choice.
            prompt: tokens that it continues.
        """

    @abstractmethod
    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece to the choice, and return its chunks."""

    @abstractmethod
    def close(
        self, stream: Stream, trace: str | None, *, counts_prompt: bool
    ) -> list[dict[str, Any]]:
        """End the choice, and return its last chunks.

        Args:
            stream: of the generation, which has ended.
            trace: page that shows it.
            counts_prompt: whether the prompt belongs to the usage; the choices of a prompt share it.
        """

    @abstractmethod
    def finish(self) -> list[dict[str, Any]]:
        """Return the chunks after the last choice."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the answer as one object, when all choices are closed."""

    def frame(self, chunk: dict[str, Any]) -> bytes:
        """Return a chunk as a server-sent event."""
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def failed(self, refusal: RefusedError) -> bytes:
        """Return the last events of a stream that cannot go on."""
        return b"data: " + refusal.to_json() + b"\n\n" + self.ending
