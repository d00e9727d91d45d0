"""Messages mean the same to the library, batch files and HTTP, with whatever clients send back."""

from __future__ import annotations

from typing import Any

import pytest

from cospec.runtime.text.messages import MessageError, MessageForm, check_messages, shape

TEXT = {"type": "text", "text": "hello"}


def read(message: dict[str, Any], **form: Any) -> dict[str, Any]:
    return shape(check_messages([message]), MessageForm(**form))[0]


@pytest.mark.parametrize(
    "extra",
    [
        {"refusal": None},
        {"refusal": ""},
        {"audio": None},
        {"audio": {"id": "audio_1"}},
        {"annotations": []},
        {"annotations": [{"type": "url_citation", "url": "x"}]},
        {"cache_control": {"type": "ephemeral"}},
        {"function_call": None},
        {"tool_calls": None},
        {"tool_calls": []},
        {"reasoning_content": None},
        {"name": None},
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_what_means_nothing_to_a_model_changes_nothing(role, extra):
    message = {"role": role, "content": "hello"}
    assert read({**message, **extra}) == message
    part = {**TEXT, **{key: value for key, value in extra.items() if key == "cache_control"}}
    assert read({**message, "content": [part]}) == message


@pytest.mark.parametrize(
    "extra",
    [
        {"reasoning_content": "why"},
        {"name": "Ann"},
        {"prefix": True},
        {"tool_plan": "first this", "documents": [{"a": 1.5}]},
        {"tool_call_id": "call12345"},
    ],
)
def test_every_other_key_reaches_the_template(extra):
    message = {"role": "assistant", "content": "hello", **extra}
    assert read(message) == message


def test_a_message_of_parts():
    parts = [
        "hello",
        TEXT,
        {"text": "hello", "annotations": []},
        {"type": "input_text", "text": "hello"},
        {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []},
        {"type": "refusal", "refusal": "hello"},
    ]
    message = {"role": "user", "content": parts}
    assert read(message)["content"] == "\n".join(["hello"] * 6)
    assert read(message, parts=True)["content"] == [TEXT] * 6
    unknown = {"type": "thinking", "thinking": "hm", "cache_control": {}}
    message = {"role": "assistant", "content": [unknown, TEXT]}
    assert read(message, parts=True)["content"] == [{"type": "thinking", "thinking": "hm"}, TEXT]


def test_a_template_that_takes_lists_only_gets_a_list():
    message = {"role": "user", "content": "hello"}
    assert read(message, text=False, parts=True)["content"] == [TEXT]
    assert read(message, text=False, parts=False)["content"] == "hello"


def test_developer_is_system_where_the_template_does_not_know_it():
    message = {"role": "developer", "content": "x"}
    assert read(message)["role"] == "system"
    assert read(message, developer=True)["role"] == "developer"


@pytest.mark.parametrize(
    ("arguments", "read_as"),
    [
        ('{"city": "Köln"}', {"city": "Köln"}),
        ("", {}),
        (" ", {}),
        ({"a": 1}, {"a": 1}),
        ("not json", "not json"),
        ("[1]", "[1]"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_arguments_of_tool_calls(arguments, read_as):
    function = {"name": "f", "arguments": arguments}
    call = {"id": "1", "type": "function", "function": function}
    for given in (call, function):
        message = {"role": "assistant", "content": None, "tool_calls": [given]}
        found = read(message)["tool_calls"][0]
        assert found.get("function", found) == {"name": "f", "arguments": read_as}
        assert "content" not in read(message)
        assert read(message, call_objects=False)["tool_calls"] == [given]
    old = {"role": "assistant", "content": None, "function_call": function}
    assert read(old) == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": read_as}}],
    }


def test_a_refusal_is_what_the_assistant_said():
    message = {"role": "assistant", "content": None, "refusal": "no"}
    assert read(message) == {"role": "assistant", "content": "no"}


def test_the_result_of_a_tool_may_be_any_json():
    message = {"role": "tool", "content": {"temperature": 3}}
    assert read(message) == message


def test_messages_are_copied():
    message = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}
    read(message)["tool_calls"][0]["function"]["name"] = "g"
    assert message["tool_calls"][0]["function"]["name"] == "f"


DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (None, "messages"),
        ({"role": "user"}, "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "", "content": "x"}], "messages[0].role"),
        ([{"role": 1, "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "assistant", "name": "A"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": {"text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": [3]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": 1, "text": "x"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [TEXT, {"type": "image_url"}]}], "messages[0].content[1]"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "x", "extra": object()}], "messages[0].extra"),
        ([{"role": "user", "content": "x", "extra": {1: 2}}], "messages[0].extra"),
        ([{"role": "user", "content": "x", "extra": DEEP}], "messages[0].extra"),
    ],
)
def test_a_message_that_cannot_be_read_is_named(messages, where):
    with pytest.raises(MessageError) as caught:
        check_messages(messages)
    assert caught.value.where == where
    assert caught.value.message.startswith(where + " ")
    assert '{"role": "user"' in caught.value.hint
