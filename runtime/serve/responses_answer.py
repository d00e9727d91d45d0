"""Answers of the Responses API: a list of items, and typed events while they are written."""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Any, ClassVar

import msgspec

from ..decoding.completion import Piece, Stream
from ..sampling.sampler import TokenLogprob
from ..text.tool_call_reader import CallPart
from .answers import Answer, Form, OutputSplitter, finish_reason_of, make_id
from .refusals import RefusedError


class ResponsesAnswer(Answer):
    """Answer of `/v1/responses`.

    Items are written one after the other: reasoning, the message, calls of functions.
    """

    ending: ClassVar[bytes] = b""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self._id = make_id("resp")
        self._created = int(time())
        self._items: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._sequence = 0
        self._status, self._detail = "in_progress", ""

    def open(self, index: int, prompt: Sequence[int]) -> list[dict[str, Any]]:
        """Begin the response."""
        self._output = OutputSplitter(self._form, prompt)
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=self.whole()) for kind in kinds]

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece, and return its events."""
        logprobs = []
        if self._form.request.reports_logprobs:
            pairs = zip(piece.tokens, piece.logprobs, strict=True)
            logprobs = [self._logprob(token, each) for token, each in pairs]
            self._logprobs += logprobs
        return self._add(*self._output.push(piece.text), logprobs)

    def close(
        self, stream: Stream, trace: str | None, *, counts_prompt: bool
    ) -> list[dict[str, Any]]:
        """End the response, and return its last events."""
        self._usage.add(stream.stats, counts_prompt=counts_prompt)
        events = self._add(*self._output.finish(), [])
        if not self._items:
            events += self._begin("message")
        is_whole = finish_reason_of(stream) == "stop"
        self._status = "completed" if is_whole else "incomplete"
        return events + self._end()

    def finish(self) -> list[dict[str, Any]]:
        """Return the event with the whole response."""
        return [self._event(f"response.{self._status}", response=self.whole())]

    def whole(self) -> dict[str, Any]:
        """Return the response as it is now."""
        form, options = self._form, self._form.request.options
        schema = options.json_schema
        wanted: dict[str, Any] = {"type": "text"}
        if schema is not None:
            schema = msgspec.json.decode(str(schema))
            wanted = {"type": "json_schema", "name": "schema", "strict": True, "schema": schema}
        use = form.request.tool_use
        is_over = self._status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "model": form.model,
            "status": self._status,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if self._status == "incomplete" else None
            ),
            "output": [dict(item) for item in self._items],
            "usage": self._usage_json() if is_over else None,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_output_tokens": options.max_tokens,
            "parallel_tool_calls": use is None or use.parallel,
            "text": {"format": wanted},
            "store": False,
            "previous_response_id": None,
            "truncation": "disabled",
            **form.request.echoed,
        }

    def frame(self, chunk: dict[str, Any]) -> bytes:
        """Return an event with its name and its place in the stream."""
        numbered = {**chunk, "sequence_number": self._sequence}
        self._sequence += 1
        return b"event: " + str(chunk["type"]).encode() + b"\n" + super().frame(numbered)

    def failed(self, refusal: RefusedError) -> bytes:
        """Return the last event of a stream that cannot go on."""
        error = msgspec.json.decode(refusal.to_json())["error"]
        return self.frame(
            self._event("error", **{key: error[key] for key in ("code", "message", "param")})
        )

    def _add(
        self,
        reasoning: str,
        text: str,
        parts: Sequence[CallPart],
        logprobs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Add output to the items that it belongs to."""
        events = []
        if reasoning:
            events += self._write("reasoning", "response.reasoning_text", reasoning)
        if text and (text.strip() or self._is_open("message") or not self._items):
            events += self._write("message", "response.output_text", text, logprobs=logprobs)
        for part in parts:
            events += self._call(part)
        return events

    def _write(self, kind: str, name: str, text: str, **extra: Any) -> list[dict[str, Any]]:
        """Add text to the last item, which is of a kind that has a text; or begin one."""
        events = [] if self._is_open(kind) else self._end() + self._begin(kind)
        item = self._items[-1]
        item["content"][0]["text"] += text
        return [*events, self._about_part(f"{name}.delta", delta=text, **extra)]

    def _begin(self, kind: str) -> list[dict[str, Any]]:
        """Begin an item that has a text."""
        if kind == "message":
            item: dict[str, Any] = {"type": kind, "id": make_id("msg"), "role": "assistant"}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
        else:
            item = {"type": kind, "id": make_id("rs"), "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        item |= {"status": "in_progress", "content": []}
        self._items.append(item)
        added = self._about_item("response.output_item.added", item={**item, "content": []})
        item["content"] = [part]
        return [added, self._about_part("response.content_part.added", part=dict(part))]

    def _end(self) -> list[dict[str, Any]]:
        """End the last item, if it has a text and is not ended yet."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return []
        item = self._items[-1]
        item["status"] = "incomplete" if self._status == "incomplete" else "completed"
        done = self._about_item("response.output_item.done", item=dict(item))
        if item["type"] == "function_call":
            written = {"name": item["name"], "arguments": item["arguments"]}
            return [self._about_arguments("done", **written), done]
        part = item["content"][0]
        name, extra = "response.reasoning_text", {}
        if item["type"] == "message":
            part["logprobs"] = self._logprobs
            name, extra = "response.output_text", {"logprobs": self._logprobs}
        return [
            self._about_part(f"{name}.done", text=part["text"], **extra),
            self._about_part("response.content_part.done", part=dict(part)),
            done,
        ]

    def _call(self, part: CallPart) -> list[dict[str, Any]]:
        """Add a part of a call of a function, which is an item."""
        events = []
        if part.name is not None:
            events = self._end()
            item = {"type": "function_call", "id": make_id("fc"), "call_id": make_id("call")}
            item |= {"name": part.name, "arguments": "", "status": "in_progress"}
            self._items.append(item)
            events.append(self._about_item("response.output_item.added", item=dict(item)))
        self._items[-1]["arguments"] += part.arguments
        if part.arguments:
            events.append(self._about_arguments("delta", delta=part.arguments))
        return events + (self._end() if part.ended else [])

    def _about_arguments(self, what: str, **facts: Any) -> dict[str, Any]:
        name = f"response.function_call_arguments.{what}"
        return self._about_item(name, item_id=self._items[-1]["id"], **facts)

    def _is_open(self, kind: str) -> bool:
        last = self._items[-1] if self._items else {}
        return last.get("type") == kind and last.get("status") == "in_progress"

    def _about_part(self, kind: str, **facts: Any) -> dict[str, Any]:
        item = self._items[-1]["id"]
        return self._about_item(kind, item_id=item, content_index=0, **facts)

    def _about_item(self, kind: str, **facts: Any) -> dict[str, Any]:
        return self._event(kind, output_index=len(self._items) - 1, **facts)

    def _event(self, kind: str, **facts: Any) -> dict[str, Any]:
        return {"type": kind, **facts}

    def _usage_json(self) -> dict[str, Any]:
        usage, show = self._usage, self._form.show_cached
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached if show else 0},
            "output_tokens": usage.generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.generated,
        }

    def _logprob(self, token: int, each: TokenLogprob) -> dict[str, Any]:
        top = [self._entry(*pair) for pair in each.top]
        return {**self._entry(token, each.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self._form.texts.spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}
