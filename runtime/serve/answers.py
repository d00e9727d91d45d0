"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from ..decoding.completion import Piece, Stream
from ..decoding.loop import FinishReason
from ..sampling.sampler import TokenLogprob
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
    """

    model: str
    fingerprint: str
    texts: TokenTexts
    streams: bool = False
    logprobs: bool = False
    include_usage: bool = False
    show_cached: bool = True
    details: bool = False


@dataclass
class Usage:
    """Tokens that an answer cost."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0


@dataclass
class Choice:
    """One choice of an answer, as far as it is written."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    details: list[dict[str, str]] = field(default_factory=list)
    offset: int = 0


class Answer(ABC):
    """Forms the answer of one request. Its choices are written one after the other.

    Args:
        form: what it contains.
    """

    whole_object: str
    chunk_object: str
    id_prefix: str
    ending: bytes | None = b"[DONE]"
    """Last event of a stream, if the API has one."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._head = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time()),
            "model": form.model,
            "system_fingerprint": form.fingerprint,
        }
        self._usage = Usage()
        self._written: list[dict[str, Any]] = []
        self._choice = Choice(-1)

    def open(self, index: int) -> list[dict[str, Any]]:
        """Begin a choice, and return its first chunks."""
        self._choice = Choice(index)
        return []

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece to the choice, and return its chunks."""
        details = self._segments(piece) if self._form.details else []
        if not self._form.streams:
            choice = self._choice
            choice.text += piece.text
            choice.tokens += piece.tokens
            choice.logprobs += piece.logprobs
            choice.details += details
            return []
        if not (piece.text or details or (self._form.logprobs and piece.tokens)):
            return []
        chunk = self._delta(piece.text)
        if details:
            chunk["details"] = details
        return [self._chunk(chunk, self._reported(piece.tokens, piece.logprobs))]

    def close(
        self, stream: Stream, trace: str | None, *, counts_prompt: bool
    ) -> list[dict[str, Any]]:
        """End the choice, and return its last chunks.

        Args:
            stream: of the generation, which has ended.
            trace: page that shows it.
            counts_prompt: whether the prompt belongs to the usage; the choices of a prompt share it.
        """
        stats, usage = stream.stats, self._usage
        usage.generated += stats.num_generated_tokens
        if counts_prompt:
            usage.prompt += stats.num_prompt_tokens
            usage.cached += stats.num_cached_tokens
        assert stream.finish_reason is not None, "it has ended"
        finish = FINISH_REASONS[stream.finish_reason]
        extra: dict[str, Any] = {"stats": stats.to_json()} if self._form.details else {}
        if trace is not None:
            extra["trace"] = trace
        if self._form.streams:
            return [self._chunk(self._delta("") | extra, None, finish)]
        done = self._choice
        if self._form.details:
            extra["details"] = done.details
        self._written.append(
            {
                "index": done.index,
                **self._message(done.text),
                "logprobs": self._reported(done.tokens, done.logprobs),
                "finish_reason": finish,
                **extra,
            }
        )
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

    def _chunk(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": self._choice.index, **delta}
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

    @abstractmethod
    def _message(self, text: str) -> dict[str, Any]:
        """Return the text of a whole answer."""

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]:
        """Return the text of a chunk."""

    @abstractmethod
    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens; called in the order of the output."""


class ChatAnswer(Answer):
    """Answer of `/v1/chat/completions`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def open(self, index: int) -> list[dict[str, Any]]:
        """Begin a choice, and return the chunk with the role."""
        super().open(index)
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)]

    def _message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> dict[str, Any]:
        content = [
            {
                **self._entry(token, each.logprob),
                "top_logprobs": [self._entry(*top) for top in each.top],
            }
            for token, each in zip(tokens, logprobs, strict=True)
            if each is not None
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self._form.texts.spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


class TextAnswer(Answer):
    """Answer of `/v1/completions`."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl"

    def _message(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

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
