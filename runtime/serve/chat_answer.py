"""Answers of the chat API: text, reasoning and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sampling.sampler import TokenLogprob
from ..text.tool_calls import ToolCall
from .answers import Answer, Form, make_id


class OutputSplitter:
    """Splits an output into reasoning, text and calls of tools.

    Args:
        form: of the answer.
        prompt: tokens before the output.
    """

    def __init__(self, form: Form, prompt: Sequence[int]) -> None:
        self._reasoning = form.splitter(prompt)
        self._calls = None if form.calls is None else form.calls()

    def push(self, text: str) -> tuple[str, str, list[ToolCall]]:
        """Add text; return what is certain of each kind."""
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
        said, calls = (text, []) if self._calls is None else self._calls.push(text)
        return reasoning, said, calls

    def finish(self) -> tuple[str, str, list[ToolCall]]:
        """Return what was held back."""
        reasoning, text = ("", "") if self._reasoning is None else self._reasoning.finish()
        if self._calls is None:
            return reasoning, text, []
        said, calls = self._calls.push(text)
        rest, more = self._calls.finish()
        return reasoning, said + rest, calls + more


class ChatAnswer(Answer):
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

    def _added(self, reasoning: str, text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """Add to the choice, and return the fields of the delta."""
        self._reasoning += reasoning
        self._choice.text += text
        new = [
            {
                "id": make_id("call"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
        first = len(self._calls)
        self._calls += new
        delta: dict[str, Any] = {"reasoning_content": reasoning} if reasoning else {}
        if text:
            delta["content"] = text
        if new:
            delta["tool_calls"] = [{"index": first + i, **call} for i, call in enumerate(new)]
        return delta

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
