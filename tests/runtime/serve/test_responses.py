"""The Responses API, as OpenAI's own client sees it."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

import cospec
from cospec.runtime.decoding.completion import Piece, Stream
from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.decoding.stopping import Interrupt
from cospec.runtime.serve.answers import Form
from cospec.runtime.serve.refusals import RefusedError
from cospec.runtime.serve.requests import Defaults, Request
from cospec.runtime.serve.responses import responses_request
from cospec.runtime.serve.responses_answer import ResponsesAnswer
from cospec.runtime.text.reasoning import ReasoningMarks, ReasoningSplitter
from cospec.runtime.text.tool_call_reader import ToolCallReader
from cospec.runtime.text.tool_calls import HERMES, Tool

QUESTION = "What is 12 + 30?"
MESSAGES = [{"role": "user", "content": QUESTION}]


def asked(**fields):
    return responses_request(json.dumps({"input": QUESTION} | fields).encode(), Defaults("tiny"))


def test_a_response_is_what_the_session_generates(client, session):
    own = session.generate(MESSAGES)
    response = client.responses.create(model="tiny", input=QUESTION)
    assert response.output_text == own.text
    assert (response.status, response.error, response.object) == ("completed", None, "response")
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert response.usage.input_tokens == own.stats.num_prompt_tokens
    assert response.usage.output_tokens == len(own.tokens)
    assert response.usage.total_tokens == own.stats.num_prompt_tokens + len(own.tokens)


def test_one_that_was_cut_off_is_incomplete(client, session):
    response = client.responses.create(model="tiny", input=QUESTION, max_output_tokens=5)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    assert response.output_text == session.generate(MESSAGES, max_tokens=5).text


def test_a_stream_has_the_events_of_the_api_in_order(client, session):
    own = session.generate(MESSAGES)
    events = list(client.responses.create(model="tiny", input=QUESTION, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 3
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type.endswith("delta")) == own.text
    assert events[-4].text == own.text
    assert events[-1].response.output_text == own.text
    assert events[-1].response.usage.output_tokens == len(own.tokens)
    assert len({getattr(event, "item_id", None) for event in events if "text" in event.type}) == 1


def test_the_streaming_helper_of_the_client_understands_it(client, session):
    with client.responses.stream(model="tiny", input=QUESTION) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text == session.generate(MESSAGES).text


class Sum(pydantic.BaseModel):
    total: int
    right: bool


def test_structured_output_is_parsed(client):
    pytest.importorskip("llguidance")
    response = client.responses.parse(
        model="tiny", input=QUESTION, text_format=Sum, max_output_tokens=200
    )
    assert isinstance(response.output_parsed, Sum)


def test_log_probabilities_are_included_on_request(client, session):
    own = session.generate(MESSAGES, sampling=cospec.SamplingParams(logprobs=2), max_tokens=6)
    response = client.responses.create(
        model="tiny",
        input=QUESTION,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        max_output_tokens=6,
    )
    reported = response.output[0].content[0].logprobs
    assert [each.logprob for each in reported] == pytest.approx(
        [each.logprob for each in own.logprobs], abs=1e-4
    )
    assert all(len(each.top_logprobs) == 2 for each in reported)


def test_a_conversation_is_sent_as_items():
    request = asked(
        instructions="Be brief",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "7"},
            {"type": "message", "role": "assistant", "content": "So?", "id": "msg_1"},
        ],
    )
    calls = [
        {"id": i, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i, name in (("1", "f"), ("2", "g"))
    ]
    assert request.prompts == [
        [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
            {"role": "assistant", "content": "So?"},
        ]
    ]


def test_fields_arrive():
    request = asked(
        max_output_tokens=9,
        temperature=0.5,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_object"}, "verbosity": "medium"},
        metadata={"a": "b"},
        stream=True,
        store=True,
        truncation="disabled",
        mode="strict",
    )
    assert request.options == GenerationOptions(
        max_tokens=9,
        temperature=0.5,
        template_args={"reasoning_effort": "low"},
        json_schema={"type": "object"},
    )
    assert request.stream
    assert request.echoed["metadata"] == {"a": "b"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{"type": "input_image"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"tools": [{"type": "web_search"}]}, None),
        ({"n": 2}, "n"),
        ({"details": True}, "details"),
        ({"beam_width": 2}, "beam_width"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, param):
    from cospec.errors import UsageError

    with pytest.raises(UsageError) as caught:
        asked(**fields)
    if param is not None:
        assert isinstance(caught.value, RefusedError)
        assert caught.value.param == param


def test_a_refusal_has_its_status(client):
    with pytest.raises(openai.BadRequestError, match="does not support previous_response_id"):
        client.responses.create(model="tiny", input="x", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="x", stream=True)


ADD = {
    "type": "function",
    "name": "add",
    "description": "x",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


def test_functions_are_called(serving, taught):
    pytest.importorskip("llguidance")
    settings = {
        "model": "tiny",
        "input": QUESTION,
        "tools": [ADD],
        "tool_choice": {"type": "function", "name": "add"},
        "parallel_tool_calls": False,
    }
    with serving(sessions=[taught]) as served, served.client() as client:
        response = client.responses.create(**settings)
        events = list(client.responses.create(**settings, stream=True))
    (call,) = response.output
    assert (call.type, call.name, call.status) == ("function_call", "add", "completed")
    assert set(json.loads(call.arguments)) == {"a"}
    assert response.tools[0].name == "add"
    kinds = [event.type.removeprefix("response.") for event in events[2:]]
    deltas = [event.delta for event in events if event.type.endswith("arguments.delta")]
    assert kinds == [
        "output_item.added",
        *["function_call_arguments.delta"] * len(deltas),
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert len(deltas) > 1
    assert "".join(deltas) == events[-3].arguments == call.arguments
    assert events[2].item.arguments == ""


def written(output: str, size: int):
    """Return the events of an output that comes in pieces of some characters."""
    form = Form(
        "tiny",
        "fp",
        None,
        Request([], GenerationOptions(), stream=True),
        splitter=lambda _: ReasoningSplitter(ReasoningMarks("<think>", "</think>")),
        calls=lambda: ToolCallReader([Tool("add", {})], HERMES),
    )
    answer = ResponsesAnswer(form)
    events = answer.open(0, [1])
    for i in range(0, len(output), size):
        events += answer.push(Piece(output[i : i + size], [], []))
    stream = Stream([1], Interrupt(None), None, lambda _: iter(()))
    stream.finish_reason = "eos"
    events += answer.close(stream, None, counts_prompt=True)
    return events + answer.finish(), answer


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_reasoning_text_and_calls_are_items_in_order(size):
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    events, answer = written(f"<think>\nHm.\n</think>\n\nSee: {call}", size)
    whole = answer.whole()
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    reasoning, message, called = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert message["content"][0]["text"].strip() == "See:"
    assert (called["name"], json.loads(called["arguments"])) == ("add", {"a": 1})
    assert {item["status"] for item in whole["output"]} == {"completed"}
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == [0, 1, 2]
    assert [event["item"]["id"] for event in done] == [item["id"] for item in whole["output"]]
    assert events[-1]["type"] == "response.completed"


def test_an_empty_output_is_an_empty_message_and_a_failure_an_error_event():
    events, answer = written("", 1)
    (message,) = answer.whole()["output"]
    assert message["content"][0]["text"] == ""
    assert events[-1]["type"] == "response.completed"
    event, data = (
        answer.failed(RefusedError("no time", code="timeout")).decode().strip().split("\n")
    )
    assert event == "event: error"
    value = json.loads(data.removeprefix("data: "))
    assert (value["type"], value["code"], value["message"]) == ("error", "timeout", "no time")
