"""Several choices and prompts, echo, token ids, constraints, templates, and the tokenizer over HTTP."""

from __future__ import annotations

import json

import httpx2 as httpx
import openai
import pytest
from http_server import events

from cospec import SamplingParams

QUESTION = "What is 12 + 30?"
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = f"Q: {QUESTION}\nA:"
OTHER = "Q: What is 2 + 2?\nA:"


def drawn(session, prompt, seed, **more):
    return session.generate(prompt, sampling=SamplingParams(1.0, seed=seed), **more)


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_what_their_seeds_give(client, session, stream):
    expected = [drawn(session, MESSAGES, seed).text for seed in (3, 4, 5)]
    assert len(set(expected)) > 1
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=3, seed=3, temperature=1.0, stream=stream
    )
    texts = ["", "", ""]
    if stream:
        finished = []
        for chunk in answer:
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            finished += [choice.index] if choice.finish_reason else []
        assert finished == [0, 1, 2]
    else:
        for choice in answer.choices:
            texts[choice.index] = choice.message.content
    assert texts == expected


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_have_choices_in_order_and_one_usage(client, session, stream):
    expected = [
        drawn(session, prompt, seed, max_tokens=9) for prompt in (PROMPT, OTHER) for seed in (1, 2)
    ]
    settings = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = client.completions.create(
        model="tiny", prompt=[PROMPT, OTHER], n=2, seed=1, temperature=1.0, max_tokens=9, **settings
    )
    texts = [""] * 4
    chunks = list(answer) if stream else [answer]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [one.text for one in expected]
    usage = chunks[-1].usage
    assert usage.prompt_tokens == sum(len(session.encode(prompt)) for prompt in (PROMPT, OTHER))
    assert usage.completion_tokens == sum(len(one.tokens) for one in expected)


def test_token_ids_are_a_prompt(client, session):
    ids = session.encode(PROMPT)
    expected = session.generate(PROMPT, max_tokens=9).text
    answer = client.completions.create(model="tiny", prompt=[ids, ids[:5]], max_tokens=9)
    assert answer.choices[0].text == expected
    assert answer.choices[1].text == session.generate(ids[:5], max_tokens=9).text
    for wrong in ([10**6], [-1]):
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.completions.create(model="tiny", prompt=[wrong])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("written", [0, 4])
def test_the_prompt_is_echoed_with_its_log_probabilities(client, session, stream, written):
    own = session.generate(PROMPT, sampling=SamplingParams(logprobs=2), max_tokens=4)
    prompt = session.encode(PROMPT)
    scores = session.new_session().score(PROMPT, top=2)
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, echo=True, max_tokens=written, logprobs=2, stream=stream
    )
    chunks = list(answer) if stream else [answer]
    reports = [chunk.choices[0].logprobs for chunk in chunks]
    reports = [report for report in reports if report is not None]
    values = [value for report in reports for value in report.token_logprobs]
    tops = [top for report in reports for top in report.top_logprobs]
    tokens = [token for report in reports for token in report.tokens]
    generated = own.tokens[:written]
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT + (
        own.text if written else ""
    )
    assert len(tokens) == len(values) == len(tops) == len(prompt) + len(generated)
    assert (values[0], tops[0]) == (None, None)
    assert values[1 : len(prompt)] == pytest.approx([one.logprob for one in scores], abs=1e-4)
    assert values[len(prompt) :] == pytest.approx(
        [one.logprob for one in own.logprobs[:written]], abs=1e-4
    )
    assert sorted(tops[3].values()) == pytest.approx(
        sorted(logprob for _, logprob in scores[2].top), abs=1e-4
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    if not stream:
        assert answer.usage.completion_tokens == written
        assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_an_echo_without_log_probabilities_is_the_text_before_the_output(client, session):
    expected = session.generate(PROMPT, max_tokens=5).text
    answer = client.completions.create(model="tiny", prompt=PROMPT, echo=True, max_tokens=5)
    assert answer.choices[0].text == PROMPT + expected
    assert answer.choices[0].logprobs is None
    ids = session.encode(PROMPT)
    again = client.completions.create(model="tiny", prompt=[ids], echo=True, max_tokens=0)
    assert again.choices[0].text == session.codec.decode(ids)


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("mode", [{}, {"temperature": 1.0, "seed": 1}])
def test_a_schema_is_followed(client, mode):
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=200,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
        },
        **mode,
    )
    value = json.loads(answer.choices[0].message.content)
    assert isinstance(value["n"], int)
    assert isinstance(value["ok"], bool)


def test_a_choice_and_an_expression_are_followed(client):
    pytest.importorskip("llguidance")
    for extra, allowed in (
        ({"guided_choice": ["forty", "two"]}, {"forty", "two"}),
        ({"structured_outputs": {"regex": "(ab|cd)e"}}, {"abe", "cde"}),
    ):
        answer = client.completions.create(model="tiny", prompt=PROMPT, extra_body=extra)
        assert answer.choices[0].text in allowed


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"guided_regex": "("}, None),
        ({"guided_json": {"type": "wrong"}}, None),
        ({"guided_json": "{"}, "json_schema"),
        ({"guided_choice": "x" * 300_000}, "guided_choice"),
    ],
)
def test_a_constraint_that_cannot_be_kept_is_refused_before_decoding(client, extra, param):
    pytest.importorskip("llguidance")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=PROMPT, extra_body=extra)
    assert caught.value.body["param"] == param


FORM = {"type": "object", "properties": {"n": {"const": 12345}}, "required": ["n"]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({}, "stop"),
        ({"max_tokens": 3}, "length"),
        ({"stop": "34"}, "length"),
        ({"stop": "x"}, "stop"),
    ],
)
def test_an_incomplete_structure_says_so(served, limit, reason, stream):
    pytest.importorskip("llguidance")
    body = {"prompt": "x", "guided_json": FORM, "details": True, "stream": stream, **limit}
    answer = served.post("completions", body)
    if stream:
        last = [json.loads(data) for data in events(answer) if data != "[DONE]"][-1]
    else:
        last = answer.json()
    (choice,) = last["choices"]
    assert (choice["finish_reason"], choice["is_complete"]) == (reason, reason == "stop")
    text = {"format": {"type": "json_schema", "name": "n", "schema": FORM}}
    asked = {"input": "x", "text": text} | limit
    asked |= {"max_output_tokens": asked.pop("max_tokens")} if "max_tokens" in asked else {}
    response = served.post("responses", asked).json()
    assert response["status"] == ("completed" if reason == "stop" else "incomplete")


def test_an_answer_may_be_continued(client, session):
    whole = session.generate(MESSAGES).text
    begun = whole[:9]
    turns = [*MESSAGES, {"role": "assistant", "content": begun}]
    for extra in ({}, {"add_generation_prompt": False}):
        answer = client.chat.completions.create(
            model="tiny", messages=turns, extra_body={"continue_final_message": True, **extra}
        )
        tokens = session.codec.encode_chat(turns, continue_final_message=True)
        assert answer.choices[0].message.content == session.generate(tokens).text
    with pytest.raises(openai.BadRequestError, match="contradict"):
        client.chat.completions.create(
            model="tiny",
            messages=turns,
            extra_body={"continue_final_message": True, "add_generation_prompt": True},
        )


def test_variables_of_the_template_have_no_effect_where_it_does_not_use_them(client, session):
    expected = session.generate(MESSAGES).text
    for extra in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "low"},
    ):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=extra)
        assert answer.choices[0].message.content == expected
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, extra_body={"chat_template_kwargs": {"messages": []}}
        )


PARTS = [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": PARTS}],
        [{"role": "user", "content": QUESTION, "annotations": [], "audio": None, "refusal": None}],
    ],
)
def test_messages_as_other_servers_write_them_mean_the_same(served, session, messages):
    answer = served.post("chat/completions", {"messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == session.generate(MESSAGES).text


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages[0]"),
        ([*MESSAGES, {"content": "Hello"}], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_by_name(served, messages, param):
    answer = served.post("chat/completions", {"messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_who_chose_each_token_is_reported_on_request(served, session):
    own = session.generate(MESSAGES)
    body = {"messages": MESSAGES, "details": True}
    choice = served.post("chat/completions", body).json()["choices"][0]
    assert [each["by"] for each in choice["details"]] == own.provenance
    assert "".join(each["text"] for each in choice["details"]) == own.text
    assert choice["stats"]["num_generated_tokens"] == len(own.tokens)
    streamed = served.post("chat/completions", body | {"stream": True})
    chunks = [
        json.loads(line.removeprefix("data: "))["choices"][0]
        for line in streamed.iter_lines()
        if line.startswith("data: {")
    ]
    segments = [each for chunk in chunks for each in chunk.get("details", [])]
    assert [each["by"] for each in segments] == own.provenance
    assert "".join(each["text"] for each in segments) == own.text
    assert chunks[-1]["stats"]["num_target_passes"] == own.stats.num_target_passes


@pytest.mark.parametrize("stream", [False, True])
def test_a_trace_is_a_page(served, stream):
    body = {"messages": MESSAGES, "trace": True, "stream": stream, "max_tokens": 9}
    answer = served.post("chat/completions", body)
    if stream:
        *_, last, _ = (line for line in answer.iter_lines() if line)
        page = json.loads(last.removeprefix("data: "))["choices"][0]["trace"]
    else:
        page = answer.json()["choices"][0]["trace"]
    assert page.startswith("<!DOCTYPE html>")
    assert "12 + 30" in page


def test_text_and_tokens_are_converted(served, session):
    ids = session.encode(PROMPT)
    answer = httpx.post(f"{served.root}/tokenize", json={"prompt": PROMPT}).json()
    assert answer == {
        "count": len(ids),
        "max_model_len": 512,
        "tokens": ids,
        "token_strs": None,
    }
    body = {"messages": MESSAGES, "return_token_strs": True}
    answer = httpx.post(f"{served.root}/tokenize", json=body).json()
    assert answer["tokens"] == session.encode(MESSAGES)
    assert answer["token_strs"] == [session.codec.spelling(token) for token in answer["tokens"]]
    back = httpx.post(f"{served.root}/detokenize", json={"tokens": ids}).json()
    assert back["prompt"] == "<s>" + PROMPT
    long = httpx.post(f"{served.root}/tokenize", json={"prompt": "1 + 2 " * 500}).json()
    assert long["error"]["code"] == "context_length_exceeded"
    for path, wrong in (
        ("tokenize", {}),
        ("tokenize", {"prompt": 1}),
        ("detokenize", {}),
        ("detokenize", {"tokens": [10**9]}),
        ("detokenize", {"tokens": ["1"]}),
        ("detokenize", {"tokens": [1], "model": "other"}),
    ):
        answer = httpx.post(f"{served.root}/{path}", json=wrong)
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["message"]


def test_the_model_says_what_it_can(client):
    (card,) = client.models.list().data
    assert card.max_model_len == 512
    assert card.capabilities["modes"] == ["strict"]
    assert card.capabilities["chat"] is True
    assert card.capabilities["drafter"] == "model"
