"""What is read from a request's JSON, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.serve.refusals import RefusedError
from cospec.runtime.serve.requests import (
    HARMLESS,
    UNSUPPORTED,
    Defaults,
    chat_request,
    completion_request,
)

DEFAULTS = Defaults("tiny")
USER = {"role": "user", "content": "Hello"}


def chat(**fields: Any) -> Any:
    return chat_request(json.dumps({"messages": [USER]} | fields).encode(), DEFAULTS)


def text(**fields: Any) -> Any:
    return completion_request(json.dumps({"prompt": "Hello"} | fields).encode(), DEFAULTS)


def test_a_bare_request_is_greedy_and_takes_the_defaults():
    request = chat()
    assert request.prompts == [[USER]]
    assert request.options == GenerationOptions()
    assert request.options.is_plain
    assert not request.stream
    other = Defaults(
        "tiny", GenerationOptions(temperature=1.0, mode="collab", threshold=0.7, num_draft_tokens=2)
    )
    request = completion_request(b'{"prompt": "Hello"}', other)
    assert request.options == other.options
    assert completion_request(b'{"prompt": "", "mode": "strict"}', other).options.threshold is None


def test_every_parameter_arrives():
    request = chat(
        model="tiny",
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={"7": -100, "8": 1.5},
        seed=3,
        min_tokens=2,
        stop="x",
        logprobs=True,
        top_logprobs=4,
        max_completion_tokens=9,
        mode="collab",
        threshold=0.6,
        num_draft_tokens="auto",
        stream=True,
        stream_options={"include_usage": True},
    )
    assert request.options == GenerationOptions(
        temperature=0.5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={7: -100.0, 8: 1.5},
        seed=3,
        min_tokens=2,
        stop=("x",),
        logprobs=4,
        max_tokens=9,
        mode="collab",
        threshold=0.6,
        num_draft_tokens="auto",
    )
    assert (request.stream, request.include_usage) == (True, True)


def test_log_probabilities_have_another_form_in_each_api():
    assert chat(logprobs=True).options.logprobs == 0
    assert chat(logprobs=False).options.logprobs is None
    assert text(logprobs=3).options.logprobs == 3
    assert text().options.logprobs is None


def test_null_is_not_given_and_one_prompt_in_a_list_is_one():
    assert text(prompt=["Hello"], stop=None, n=None, tools=None, unheard_of=None) == text()


def test_harmless_fields_and_neutral_values_are_accepted():
    assert chat(**{name: {"any": "thing"} for name in HARMLESS}) == chat()
    for name, neutral in UNSUPPORTED.items():
        for value in neutral:
            assert chat(**{name: value}) == chat()
    assert chat(best_of=1, top_logprobs=0, max_tokens=16.0, seed=-1) == chat(max_tokens=16)


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"n": 0}, "n", "from 1 to 128 choices"),
        ({"n": 129}, "n", "from 1 to 128 choices"),
        ({"n": True}, "n", "an integer"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "one of text, json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown field"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_json", "one of them only"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "several"),
        ({"best_of": 3}, "best_of", "only 1"),
        ({"suffix": "x"}, "suffix", "only"),
        ({"beam_width": 3}, "'beam_width'", "unknown field"),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"temperature": True}, "temperature", "a number"),
        ({"temperature": -1}, "temperature", "from 0 to 100"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_k": 1.5}, "top_k", "an integer"),
        ({"seed": 2**64}, "seed", "at most 18446744073709551615"),
        ({"logit_bias": [1]}, "logit_bias", "an object"),
        ({"logit_bias": {"the": 1}}, "logit_bias", "an integer"),
        ({"logit_bias": {"1": "x"}}, "logit_bias", "a number"),
        ({"stop": [1]}, "stop", "a text"),
        ({"stop": ""}, "stop", "a text of length >= 1"),
        ({"stop": ["x"] * 65}, "stop", "length <= 64"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": "9"}, "max_tokens", "an integer"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "at least 1"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ"),
        ({"max_tokens": 1, "min_tokens": 2}, "min_tokens", "above max_tokens"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": 1}, "stream_options", "not a JSON object"),
        ({"mode": "fast"}, "mode", "strict, collab"),
        ({"mode": []}, "mode", "strict, collab"),
        ({"num_draft_tokens": 1.5}, "num_draft_tokens", "an integer"),
        ({"threshold": "x"}, "threshold", "a number"),
        ({"model": 3}, "model", "a string"),
    ],
)
def test_what_is_wrong_is_refused_by_name_in_both_apis(fields, param, part):
    for read in (chat, text):
        with pytest.raises(RefusedError) as caught:
            read(**fields)
        assert caught.value.status == 400
        assert caught.value.param is not None
        assert caught.value.param in (param, param.strip("'"))
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (None, "at least one message"),
        ([], "at least one message"),
        ("Hello", "messages is wrong"),
    ],
)
def test_messages_that_are_none_are_refused(messages, part):
    with pytest.raises(RefusedError) as caught:
        chat(messages=messages)
    assert part in caught.value.message


@pytest.mark.parametrize(
    "prompt", [None, 5, [], [["a"]], [[]], ["a", 1], [1, "a"], [1.5], ["a"] * 129]
)
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(RefusedError) as caught:
        text(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], "a", [2, 3]], [[1], "a", [2, 3]]),
    ],
)
def test_prompts_are_texts_or_token_ids_or_several(prompt, prompts):
    assert text(prompt=prompt).prompts == prompts


def test_no_tokens_are_written_only_where_the_prompt_is_echoed():
    assert not text(echo=True, max_tokens=0).writes
    assert text(echo=True, max_tokens=1).writes
    with pytest.raises(RefusedError, match="max_tokens is 0"):
        text(max_tokens=0)
    with pytest.raises(RefusedError, match="only false for echo"):
        chat(echo=True)


def test_choices_of_a_prompt_have_successive_seeds():
    request = text(prompt=["a", "b"], n=3, seed=7, temperature=1)
    assert [request.options_of_choice(i).seed for i in range(6)] == [7, 8, 9, 7, 8, 9]
    assert {text(n=2).options_of_choice(i).seed for i in range(2)} == {None}


def test_variables_of_the_template_arrive():
    options = chat(
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        continue_final_message=True,
        add_generation_prompt=False,
    ).options
    assert options.template_args == {"enable_thinking": False, "reasoning_effort": "low"}
    assert (options.continue_final_message, options.add_generation_prompt) == (True, False)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "option", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json_schema",
            SCHEMA,
        ),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", ("a", "b")),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"'),
        ({"structured_outputs": {"regex": "a+", "disable_any_whitespace": True}}, "regex", "a+"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", {"type": "object"}),
        ({"response_format": {"type": "text"}}, "regex", None),
    ],
)
def test_every_spelling_of_a_constraint_arrives(fields, option, value):
    for read in (chat, text):
        found = getattr(read(**fields).options, option)
        assert (json.loads(found) if option == "json_schema" else found) == value


def test_each_api_has_its_own_fields():
    with pytest.raises(RefusedError, match="top_logprobs needs logprobs"):
        chat(top_logprobs=2)
    with pytest.raises(RefusedError, match="top_logprobs"):
        text(top_logprobs=2)
    with pytest.raises(RefusedError, match="logprobs is True, but must be an integer"):
        text(logprobs=True)
    with pytest.raises(RefusedError, match="unknown field"):
        text(messages=[USER])
    with pytest.raises(RefusedError, match=r"supports only \[\] for tools"):
        text(tools=[{"type": "function"}])


def test_another_model_is_not_found():
    with pytest.raises(RefusedError) as caught:
        chat(model="gpt-5")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
