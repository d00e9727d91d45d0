"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

import msgspec

from ..decoding.completion import Piece, Stream
from ..decoding.loop import FinishReason
from ..decoding.stats import GenerationStats
from ..sampling.sampler import TokenLogprob
from ..text.reasoning import ReasoningSplitter
from ..text.tool_calls import ToolCallReader
from .refusals import RefusedError
from .token_text import TokenTexts

FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "capacity": "length",
}
"""OpenAI's finish reasons. Cancelled and timed-out generations have none: they are errors."""


@dataclass(frozen=True)
class Form:
    """What an answer contains.

    Attributes:
        model: name of the model.
        fingerprint: of the bundle; the same seed gives the same answer only with the same bundle.
        texts: text and bytes of single tokens.
        streams: the answer is sent in chunks.
        logprobs: report log-probabilities.
        include_usage: a stream ends with the usage.
        show_cached: the usage says how many tokens of the prompts were found in a cache.
        details: report who chose each token, and the statistics.
        splitter: returns what splits the output after a prompt into reasoning and answer, if anything.
        calls: returns what finds calls of tools in the output; None without tools.
    """

    model: str
    fingerprint: str
    texts: TokenTexts
    streams: bool = False
    logprobs: bool = False
    include_usage: bool = False
    show_cached: bool = True
    details: bool = False
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


@dataclass
class Choice:
    """One choice of an answer, as far as it is written.

    Attributes:
        index: number of the choice.
        text: of the answer.
        tokens: of the output.
        logprobs: of the tokens.
        details: text of each token, and who chose it.
        offset: characters of the tokens that were reported.
    """

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    details: list[dict[str, str]] = field(default_factory=list)
    offset: int = 0


def make_id(prefix: str) -> str:
    """Return a new id, such as `chatcmpl-3f...`."""
    return f"{prefix}-{secrets.token_hex(12)}"


class Answer(ABC):
    """Forms the answer of one request. Its choices are written one after the other.

    Args:
        form: what it contains.
    """

    whole_object: str
    chunk_object: str
    id_prefix: str
    ending = b"data: [DONE]\n\n"
    """Last event of a stream."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._head = {
            "id": make_id(self.id_prefix),
            "created": int(time()),
            "model": form.model,
            "system_fingerprint": form.fingerprint,
        }
        self._usage = Usage()
        self._written: list[dict[str, Any]] = []
        self._choice = Choice(-1)

    def open(self, index: int, prompt: Sequence[int]) -> list[dict[str, Any]]:
        """Begin a choice, and return its first chunks.

        Args:
            index: number of the choice.
            prompt: tokens that it continues.
        """
        self._choice = Choice(index)
        return []

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece to the choice, and return its chunks."""
        details = self._segments(piece) if self._form.details else []
        delta = self._split(piece.text)
        if not self._form.streams:
            choice = self._choice
            choice.tokens += piece.tokens
            choice.logprobs += piece.logprobs
            choice.details += details
            return []
        if not (delta or details or (self._form.logprobs and piece.tokens)):
            return []
        extra: dict[str, Any] = {"details": details} if details else {}
        return [self._chunk(delta, self._reported(piece.tokens, piece.logprobs), **extra)]

    def close(
        self, stream: Stream, trace: str | None, *, counts_prompt: bool
    ) -> list[dict[str, Any]]:
        """End the choice, and return its last chunks.

        Args:
            stream: of the generation, which has ended.
            trace: page that shows it.
            counts_prompt: whether the prompt belongs to the usage; the choices of a prompt share it.
        """
        self._usage.add(stream.stats, counts_prompt=counts_prompt)
        assert stream.finish_reason is not None, "it has ended"
        rest, finish = self._end(FINISH_REASONS[stream.finish_reason])
        extra: dict[str, Any] = {"stats": stream.stats.to_json()} if self._form.details else {}
        if trace is not None:
            extra["trace"] = trace
        if self._form.streams:
            chunks = [self._chunk(rest, None)] if rest else []
            return [*chunks, self._chunk({}, None, finish, **extra)]
        done = self._choice
        if self._form.details:
            extra["details"] = done.details
        logprobs = self._reported(done.tokens, done.logprobs)
        written = {"index": done.index, **self._message(), "logprobs": logprobs}
        self._written.append({**written, "finish_reason": finish, **extra})
        return []

    def finish(self) -> list[dict[str, Any]]:
        """Return the chunks after the last choice."""
        if not self._form.include_usage:
            return []
        head = {**self._head, "object": self.chunk_object}
        return [{**head, "choices": [], "usage": self._usage_json()}]

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object, when all choices are closed."""
        head = {**self._head, "object": self.whole_object}
        return {**head, "choices": self._written, "usage": self._usage_json()}

    def frame(self, chunk: dict[str, Any]) -> bytes:
        """Return a chunk as a server-sent event."""
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def failed(self, refusal: RefusedError) -> bytes:
        """Return the last events of a stream that cannot go on."""
        return b"data: " + refusal.to_json() + b"\n\n" + self.ending

    def _chunk(
        self,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None,
        finish: str | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        choice = {"index": self._choice.index, **self._delta(delta), **extra}
        choice |= {"logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "object": self.chunk_object, "choices": [choice]}
        return {**chunk, "usage": None} if self._form.include_usage else chunk

    def _usage_json(self) -> dict[str, Any]:
        usage = self._usage
        total = {"prompt_tokens": usage.prompt, "completion_tokens": usage.generated}
        total["total_tokens"] = usage.prompt + usage.generated
        if not self._form.show_cached:
            return total
        return {**total, "prompt_tokens_details": {"cached_tokens": usage.cached}}

    def _segments(self, piece: Piece) -> list[dict[str, str]]:
        """Return the text of a piece by the token that it belongs to, with who chose the token.

        The texts joined are that of the piece, from which a stop text may be missing.
        """
        left, segments = piece.text, []
        last = len(piece.tokens) - 1
        for i, (token, who) in enumerate(zip(piece.tokens, piece.provenance, strict=True)):
            size = len(left) if i == last else len(self._form.texts.spell(token)[0])
            segments.append({"text": left[:size], "by": who})
            left = left[size:]
        return segments

    def _reported(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, Any] | None:
        return self._logprobs_of(tokens, logprobs) if self._form.logprobs else None

    def _split(self, text: str) -> dict[str, Any]:
        """Add text of the output to the choice, and return what it adds by its kind."""
        self._choice.text += text
        return {"text": text} if text else {}

    def _end(self, finish: str) -> tuple[dict[str, Any], str]:
        """Return what was held back until the end of the output, and the finish reason."""
        return {}, finish

    @abstractmethod
    def _message(self) -> dict[str, Any]:
        """Return the fields of a whole choice."""

    @abstractmethod
    def _delta(self, added: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a chunk's choice."""

    @abstractmethod
    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens; called in the order of the output."""


class TextAnswer(Answer):
    """Answer of `/v1/completions`."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl"

    def _message(self) -> dict[str, Any]:
        return {"text": self._choice.text}

    def _delta(self, added: dict[str, Any]) -> dict[str, Any]:
        return {"text": added.get("text", "")}

    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, Any]:
        texts = [self._form.texts.spell(token)[0] for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._choice.offset)
            self._choice.offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if each is None else each.logprob for each in logprobs],
            "top_logprobs": [None if each is None else self._top(each) for each in logprobs],
            "text_offset": offsets,
        }

    def _top(self, each: TokenLogprob) -> dict[str, float]:
        return {self._form.texts.spell(token)[0]: logprob for token, logprob in each.top}
