"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import time
from typing import Any

from ..decoding.completion import Completion, Piece
from ..decoding.loop import FinishReason
from ..decoding.stats import GenerationStats
from ..sampling.sampler import TokenLogprob
from .token_text import TokenTexts

FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "capacity": "length",
}
"""OpenAI's finish reasons. Cancelled and timed-out generations have none: they are errors."""


class Answer(ABC):
    """Forms the answer of one request.

    Args:
        model: name of the model.
        fingerprint: of the bundle; the same seed gives the same answer only with the same bundle.
        texts: text and bytes of single tokens.
        logprobs: whether the request asks for log-probabilities.
        include_usage: whether a stream ends with the usage.
        show_cached: whether the usage says how much of the prompt was found in a cache.
    """

    whole_object: str
    chunk_object: str
    id_prefix: str

    def __init__(
        self,
        model: str,
        fingerprint: str,
        texts: TokenTexts,
        *,
        logprobs: bool,
        include_usage: bool,
        show_cached: bool = True,
    ) -> None:
        self._head = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._texts = texts
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._show_cached = show_cached

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the answer as one object."""
        choice = {
            "index": 0,
            **self._message(completion.text),
            "logprobs": self._reported(completion.tokens, completion.logprobs),
            "finish_reason": FINISH_REASONS[completion.finish_reason],
        }
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [choice],
            "usage": self._usage(completion.stats),
        }

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunks before the first text."""
        return []

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks of a piece; none if it has neither text nor log-probabilities."""
        if not piece.text and not (self._logprobs and piece.tokens):
            return []
        logprobs = self._reported(piece.tokens, piece.logprobs)
        return [self._chunk(self._delta(piece.text), logprobs)]

    def closing(self, finish: FinishReason, stats: GenerationStats) -> list[dict[str, Any]]:
        """Return the chunks after the last text."""
        last = [self._chunk(self._delta(""), None, FINISH_REASONS[finish])]
        if self._include_usage:
            last.append(
                {
                    **self._head,
                    "object": self.chunk_object,
                    "choices": [],
                    "usage": self._usage(stats),
                }
            )
        return last

    def _chunk(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, **delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "object": self.chunk_object, "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _usage(self, stats: GenerationStats) -> dict[str, Any]:
        """Return what an answer cost, in tokens."""
        prompt, generated = stats.num_prompt_tokens, stats.num_generated_tokens
        total = {"prompt_tokens": prompt, "completion_tokens": generated}
        total["total_tokens"] = prompt + generated
        if not self._show_cached:
            return total
        return {**total, "prompt_tokens_details": {"cached_tokens": stats.num_cached_tokens}}

    def _reported(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any] | None:
        return self._logprobs_of(tokens, logprobs) if self._logprobs else None

    @abstractmethod
    def _message(self, text: str) -> dict[str, Any]:
        """Return the text of a whole answer."""

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]:
        """Return the text of a chunk."""

    @abstractmethod
    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        """Return the log-probabilities of the next tokens; called in the order of the output."""


class ChatAnswer(Answer):
    """Answer of `/v1/chat/completions`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunk with the role."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)]

    def _message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        content = [
            {
                **self._entry(token, each.logprob),
                "top_logprobs": [self._entry(*top) for top in each.top],
            }
            for token, each in zip(tokens, logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self._texts.spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


class TextAnswer(Answer):
    """Answer of `/v1/completions`."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl"
    _offset = 0

    def _message(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs_of(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        texts = [self._texts.spell(token)[0] for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [
                {self._texts.spell(token)[0]: logprob for token, logprob in each.top}
                for each in logprobs
            ],
            "text_offset": offsets,
        }
