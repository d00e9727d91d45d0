"""Calls of tools and reasoning, in the form of the chat API."""

from __future__ import annotations

import json

import openai
import pytest

from cospec.runtime.decoding.completion import Piece, Stream
from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.decoding.stopping import Interrupt
from cospec.runtime.serve.answers import Form
from cospec.runtime.serve.completion_answers import ChatAnswer
from cospec.runtime.serve.requests import Request
from cospec.runtime.text.reasoning import ReasoningMarks, ReasoningSplitter
from cospec.runtime.text.tool_call_reader import ToolCallReader
from cospec.runtime.text.tool_calls import HERMES, Tool

MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]


def tool(name, **properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": "x", "parameters": parameters},
    }


NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = tool("add", a=NUMBER, b=NUMBER)
TIME = tool("time")


@pytest.fixture(scope="module")
def served(serving, taught):
    pytest.importorskip("llguidance")
    with serving(sessions=[taught]) as running:
        yield running


def chat(client, **settings):
    return client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=200, **settings
    )


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"add", "time"}),
        ({"type": "function", "function": {"name": "add"}}, {"add"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
    ],
)
@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 4}])
def test_a_forced_call_is_valid_streamed_or_not(client, choice, names, sampled):
    settings = {"tools": [ADD, TIME], "tool_choice": choice, "parallel_tool_calls": False} | sampled
    (answer,) = chat(client, **settings).choices
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == ({"a", "b"} if call.function.name == "add" else set())
    assert all(isinstance(value, int) for value in arguments.values())
    chunks = [chunk.choices[0] for chunk in chat(client, stream=True, **settings)]
    deltas = [each for chunk in chunks for each in chunk.delta.tool_calls or []]
    assert {each.index for each in deltas} == {0}
    assert deltas[0].id
    assert not any(each.id or each.function.name for each in deltas[1:])
    assert deltas[0].function.name == call.function.name
    assert len(deltas) > 1 or call.function.name == "time"
    assert json.loads("".join(each.function.arguments for each in deltas)) == arguments
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)


@pytest.mark.parametrize("asked", [{}, {"parallel_tool_calls": True}])
def test_a_named_function_is_called_once(client, asked):
    choice = {"type": "function", "function": {"name": "add"}}
    (answer,) = chat(client, tools=[ADD, TIME], tool_choice=choice, **asked).choices
    assert answer.finish_reason == "tool_calls"
    assert [call.function.name for call in answer.message.tool_calls] == ["add"]


def test_the_prompt_contains_the_tools_unless_none_may_be_called(client, taught):
    for settings in ({}, {"tool_choice": "auto"}):
        answer = chat(client, tools=[ADD], **settings)
        assert answer.usage.prompt_tokens == len(taught.codec.encode_chat(MESSAGES, tools=[ADD]))
    answer = chat(client, tools=[ADD], tool_choice="none")
    assert answer.usage.prompt_tokens == len(taught.codec.encode_chat(MESSAGES))
    assert answer.choices[0].message.content == taught.new_session().generate(MESSAGES).text
    assert answer.choices[0].message.tool_calls is None


def test_a_template_without_tools_is_refused(serving):
    with serving() as plain, plain.client() as client:
        with pytest.raises(openai.BadRequestError, match="does not know tools") as caught:
            chat(client, tools=[ADD])
        assert caught.value.body["param"] == "tools"
        assert chat(client, tools=[ADD], tool_choice="none").choices


def test_results_of_tools_are_part_of_the_conversation(served, taught):
    turns = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    answer = served.post("chat/completions", {"messages": turns, "max_tokens": 2}).json()
    prompt = taught.codec.encode_chat(turns)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert taught.codec.decode(prompt).endswith("a: addt: 42A:")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice must be one of"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "no such",
        ),
        ({"tool_choice": "required"}, "no such function"),
        ({"tools": [ADD, ADD]}, "two tools have the name"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\]"),
        (
            {"tools": [ADD], "extra_body": {"guided_regex": "a"}, "tool_choice": "required"},
            "one gram",
        ),
    ],
)
def test_tools_that_cannot_be_used_are_refused(client, settings, part):
    with pytest.raises(openai.BadRequestError, match=part):
        chat(client, **settings)


OUTPUT = (
    "<think>\nTwo and two.\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
)


def parts_of(output: str, size: int) -> list[Piece]:
    texts = [output[i : i + size] for i in range(0, len(output), size)]
    return [Piece(text, [], []) for text in texts]


def merged(deltas: list[dict]) -> list[dict]:
    """Calls from their deltas, as clients put them together."""
    calls: list[dict] = []
    for delta in deltas:
        if delta["index"] == len(calls):
            calls.append({**delta, "function": dict(delta["function"])})
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls


def ended(finish="eos") -> Stream:
    stream = Stream([1], Interrupt(None), None, lambda _: iter(()))
    stream.finish_reason = finish
    return stream


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("streams", [False, True])
def test_reasoning_text_and_calls_are_told_apart(streams, size):
    form = Form(
        "tiny",
        "fp",
        None,
        Request([], GenerationOptions(), stream=streams),
        splitter=lambda _: ReasoningSplitter(ReasoningMarks("<think>", "</think>")),
        calls=lambda: ToolCallReader([Tool("add", {})], HERMES),
    )
    answer = ChatAnswer(form)
    chunks = answer.open(0, [1])
    for piece in parts_of(OUTPUT, size):
        chunks += answer.push(piece)
    chunks += answer.close(ended(), None, counts_prompt=True)
    if streams:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        content = "".join(delta.get("content", "") for delta in deltas)
        calls = merged([call for delta in deltas for call in delta.get("tool_calls", [])])
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        assert [chunk["choices"][0]["delta"]["role"] for chunk in chunks] == ["assistant"]
        (choice,) = answer.whole()["choices"]
        message, finish = choice["message"], choice["finish_reason"]
        reasoning, content = message["reasoning_content"], message["content"]
        calls = message["tool_calls"]
    assert reasoning == "Two and two."
    assert content.strip() == "Let me see."
    (call,) = calls
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (
        "add",
        {"a": 1},
    )
    assert finish == "tool_calls"


@pytest.mark.parametrize(
    ("cut", "content", "arguments"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1', None, '{"a": 1'),
        ('<tool_call>\n{"name": "add", "argum', '<tool_call>\n{"name": "add", "argum', None),
    ],
)
def test_a_call_that_was_cut_off_has_what_was_written_and_the_reason(cut, content, arguments):
    request = Request([], GenerationOptions())
    form = Form(
        "tiny", "fp", None, request, calls=lambda: ToolCallReader([Tool("add", {})], HERMES)
    )
    answer = ChatAnswer(form)
    answer.open(0, [1])
    for piece in parts_of(cut, 5):
        answer.push(piece)
    answer.close(ended("length"), None, counts_prompt=True)
    (choice,) = answer.whole()["choices"]
    calls = choice["message"].get("tool_calls", [{"function": {"arguments": None}}])
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, "length")
    assert calls[0]["function"]["arguments"] == arguments


def test_an_answer_of_a_schema_goes_with_tools(client):
    schema = {"type": "object", "properties": {"sum": NUMBER}, "required": ["sum"]}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    (free,) = chat(client, tools=[ADD], response_format=form).choices
    if free.message.tool_calls:
        assert free.message.tool_calls[0].function.name == "add"
    else:
        assert set(json.loads(free.message.content)) == {"sum"}
    forced = {"tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False}
    (answer,) = chat(client, response_format=form, **forced).choices
    assert set(json.loads(answer.message.tool_calls[0].function.arguments)) == {"a", "b"}
