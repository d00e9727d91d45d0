"""Answers of the two completion APIs, whose choices have one text each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from ..decoding.completion import Piece, Stream
from ..sampling.sampler import TokenLogprob
from ..text.tool_call_reader import CallPart
from .answers import Answer, Form, OutputSplitter, finish_reason_of, make_id


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


class ChoicesAnswer(Answer):
    """What the answers of both APIs have in common."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self._head = {
            "id": make_id(self.id_prefix),
            "created": int(time()),
            "model": form.model,
            "system_fingerprint": form.fingerprint,
        }
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
        details = self._segments(piece) if self._form.request.details else []
        delta = self._split(piece.text)
        if not self._form.request.stream:
            choice = self._choice
            choice.tokens += piece.tokens
            choice.logprobs += piece.logprobs
            choice.details += details
            return []
        if not (delta or details or (self._form.request.reports_logprobs and piece.tokens)):
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
        rest, finish = self._end(finish_reason_of(stream))
        extra: dict[str, Any] = {}
        if self._form.request.details:
            extra["stats"] = stream.stats.to_json()
            extra |= {} if stream.is_complete is None else {"is_complete": stream.is_complete}
        if trace is not None:
            extra["trace"] = trace
        if self._form.request.stream:
            chunks = [self._chunk(rest, None)] if rest else []
            return [*chunks, self._chunk({}, None, finish, **extra)]
        done = self._choice
        if self._form.request.details:
            extra["details"] = done.details
        logprobs = self._reported(done.tokens, done.logprobs)
        written = {"index": done.index, **self._message(), "logprobs": logprobs}
        self._written.append({**written, "finish_reason": finish, **extra})
        return []

    def finish(self) -> list[dict[str, Any]]:
        """Return the chunks after the last choice."""
        if not self._form.request.include_usage:
            return []
        head = {**self._head, "object": self.chunk_object}
        return [{**head, "choices": [], "usage": self._usage_json()}]

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object, when all choices are closed."""
        head = {**self._head, "object": self.whole_object}
        return {**head, "choices": self._written, "usage": self._usage_json()}

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
        return {**chunk, "usage": None} if self._form.request.include_usage else chunk

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
        return self._logprobs_of(tokens, logprobs) if self._form.request.reports_logprobs else None

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


class TextAnswer(ChoicesAnswer):
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


class ChatAnswer(ChoicesAnswer):
    """Answer of `/v1/chat/completions`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def open(self, index: int, prompt: Sequence[int]) -> list[dict[str, Any]]:
        """Begin a choice, and return the chunk with the role."""
        super().open(index, prompt)
        self._output = OutputSplitter(self._form, prompt)
        self._reasoning = ""
        self._calls: list[dict[str, Any]] = []
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def _split(self, text: str) -> dict[str, Any]:
        return self._added(*self._output.push(text))

    def _end(self, finish: str) -> tuple[dict[str, Any], str]:
        rest = self._added(*self._output.finish())
        return rest, "tool_calls" if self._calls and finish == "stop" else finish

    def _added(self, reasoning: str, text: str, parts: Sequence[CallPart]) -> dict[str, Any]:
        """Add to the choice, and return the fields of the delta."""
        self._reasoning += reasoning
        self._choice.text += text
        delta: dict[str, Any] = {"reasoning_content": reasoning} if reasoning else {}
        if text:
            delta["content"] = text
        if parts:
            delta["tool_calls"] = [self._add_part(part) for part in parts]
        return delta

    def _add_part(self, part: CallPart) -> dict[str, Any]:
        """Add a part of a call to the choice, and return it as a delta."""
        if part.name is None:
            self._calls[-1]["function"]["arguments"] += part.arguments
            return {"index": len(self._calls) - 1, "function": {"arguments": part.arguments}}
        function = {"name": part.name, "arguments": part.arguments}
        head = {"id": make_id("call"), "type": "function"}
        self._calls.append({**head, "function": function})
        return {"index": len(self._calls) - 1, **head, "function": dict(function)}

    def _message(self) -> dict[str, Any]:
        text = self._choice.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        return {"message": message}

    def _delta(self, added: dict[str, Any]) -> dict[str, Any]:
        return {"delta": added}

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
