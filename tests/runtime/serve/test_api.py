"""The server as OpenAI's own client and curl see it, with the trained tiny pair."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import openai
import pytest
from api_calls import MESSAGES, PROMPT, post

from cospec import SamplingParams

DRAWN = {"temperature": 1.0, "seed": 11, "top_p": 0.95}


def joined_chat(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_chat_is_what_the_session_generates(client, session):
    own = session.generate(MESSAGES)
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    choice = answer.choices[0]
    assert choice.message.content == own.text
    assert choice.message.role == "assistant"
    assert (own.finish_reason, choice.finish_reason) == ("eos", "stop")
    assert answer.usage.prompt_tokens == own.stats.num_prompt_tokens
    assert answer.usage.completion_tokens == len(own.tokens)
    assert answer.usage.total_tokens == own.stats.num_prompt_tokens + len(own.tokens)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert choice.logprobs is None


def test_text_is_what_the_session_generates(client, session):
    own = session.generate(PROMPT, max_tokens=9)
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=9)
    assert answer.choices[0].text == own.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"


def test_a_stream_joins_to_the_same_and_ends_with_the_usage(client, session):
    own = session.generate(MESSAGES)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert joined_chat(chunks) == own.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(own.tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5, "it should come in pieces"


def test_a_text_stream_joins_to_the_same_without_usage_unless_asked(client, session):
    own = session.generate(PROMPT, max_tokens=9)
    chunks = list(client.completions.create(model="tiny", prompt=PROMPT, max_tokens=9, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == own.text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


def test_the_next_turn_of_a_conversation_is_read_from_a_cache(client):
    first = client.chat.completions.create(model="tiny", messages=MESSAGES)
    text = first.choices[0].message.content
    turns = [*MESSAGES, {"role": "assistant", "content": text}, MESSAGES[0]]
    second = client.chat.completions.create(model="tiny", messages=turns)
    known = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens <= known < second.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_in_the_form_of_chat(client, session, stream):
    own = session.generate(MESSAGES, sampling=SamplingParams(logprobs=3), max_tokens=12)
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=3, stream=stream
    )
    if stream:
        reported = [each.choices[0].logprobs for each in answer]
        content = [entry for each in reported if each is not None for entry in each.content]
    else:
        content = answer.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx(
        [each.logprob for each in own.logprobs], abs=1e-4
    )
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == own.text
    assert "".join(entry.token for entry in content) == own.text
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the most likely"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_in_the_form_of_text(client, session, stream):
    own = session.generate(PROMPT, sampling=SamplingParams(logprobs=2), max_tokens=12)
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, logprobs=2, stream=stream
    )
    reports = [
        each.choices[0].logprobs for each in (answer if stream else [answer]) if each.choices
    ]
    reports = [report for report in reports if report is not None]
    tokens = [token for report in reports for token in report.tokens]
    offsets = [offset for report in reports for offset in report.text_offset]
    assert "".join(tokens) == own.text
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    assert [one for report in reports for one in report.token_logprobs] == pytest.approx(
        [each.logprob for each in own.logprobs], abs=1e-4
    )
    assert all(len(top) == 2 for report in reports for top in report.top_logprobs)


def test_a_seed_repeats_itself_streaming_or_not_whatever_is_drafted(client, session):
    own = session.generate(MESSAGES, sampling=SamplingParams(1.0, seed=11, top_p=0.95))
    for extra in ({}, {"num_draft_tokens": 0}, {"num_draft_tokens": 5}):
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, **DRAWN, extra_body=extra
        )
        assert answer.choices[0].message.content == own.text
    chunks = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **DRAWN)
    assert joined_chat(chunks) == own.text
    others = {
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=1.0, seed=seed)
        .choices[0]
        .message.content
        for seed in range(5)
    }
    assert len(others) > 1


def test_a_stop_text_ends_it_and_is_not_shown(client, session):
    whole = session.generate(MESSAGES).text
    stop = whole[9:12]
    for given in (stop, [stop, "never there"]):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, stop=given)
        assert answer.choices[0].message.content == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_extensions_under_vllms_names_arrive(client, session):
    params = SamplingParams(0.9, top_k=5, min_p=0.05, repetition_penalty=1.3, seed=2, min_tokens=6)
    own = session.generate(MESSAGES, sampling=params, max_tokens=20)
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0.9,
        seed=2,
        max_tokens=20,
        extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3, "min_tokens": 6},
    )
    assert answer.choices[0].message.content == own.text


def test_models_are_listed_and_found(client):
    (card,) = client.models.list().data
    assert card.id == "tiny"
    assert card.max_model_len == 512
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="is not here"):
        client.models.retrieve("some/other")


def test_concurrent_clients_get_their_own_answers(serving, session):
    questions = [f"What is {a} + {b}?" for a in (3, 17, 58) for b in (4, 21, 66)]
    expected = {q: session.generate([{"role": "user", "content": q}]).text for q in questions}
    assert len(set(expected.values())) > 6
    sessions = [session.new_session(), session.new_session()]
    with serving(sessions=sessions) as two_slots, two_slots.client() as client:

        def ask(question: str) -> str:
            chunks = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": question}], stream=True
            )
            return joined_chat(chunks)

        with ThreadPoolExecutor(9) as pool:
            for question, answer in zip(questions * 3, pool.map(ask, questions * 3), strict=True):
                assert answer == expected[question]


MALFORMED = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"[]", "not a JSON object"),
    (b'{"prompt": "\xff"}', "not valid JSON"),
    (b'{"prompt": "x", "temperature": NaN}', "not valid JSON"),
    (b'{"prompt": "x", "prompt": "y"}', "appears twice"),
    (b'{"prompt": ' + b"[" * 99_999 + b"]" * 99_999 + b"}", "nested too deep"),
    (b'{"prompt": "x", "seed": ' + b"9" * 400 + b"}", "must be at most 18446744073709551615"),
    (b'{"prompt": "x", "temperature": 1e999}', "is wrong: Number out of range"),
    (b'{"prompt": ""}', "prompt is empty"),
    (b'{"prompt": "\\ud800"}', "not valid JSON"),
    (b'{"prompt": "x", "logit_bias": {"99999": 1}}', "ids run from 0"),
    (b'{"prompt": "x", "mode": "collab"}', "has no arbiter"),
    (b'{"prompt": "x", "threshold": 0.5}', "'collab' only"),
    (b'{"prompt": "x", "num_draft_tokens": 100000}', "drafts at most 63"),
    (b'{"prompt": "x", "num_draft_tokens": -1}', "at least 0"),
]


@pytest.mark.parametrize(("body", "part"), MALFORMED)
def test_malformed_requests_get_400_and_a_reason(served, body, part):
    for headers in ({}, {"Accept": "text/event-stream"}):
        answer = httpx.post(
            f"{served.url}/completions",
            content=body,
            headers={"Content-Type": "application/json", **headers},
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert part in error["message"]


def test_a_bad_stream_is_refused_with_a_status_not_an_event(client):
    with pytest.raises(openai.BadRequestError, match="choices"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=0, stream=True)


def test_a_prompt_that_is_too_long_has_the_code_that_clients_know(client):
    with pytest.raises(
        openai.BadRequestError, match=r"the model's context length.*holds 512"
    ) as caught:
        client.completions.create(model="tiny", prompt="1 + 2 " * 500)
    assert caught.value.code == "context_length_exceeded"


def test_other_refusals_have_their_status(served, client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert httpx.get(f"{served.url}/nothing").status_code == 404
    assert httpx.get(f"{served.url}/completions").status_code == 405
    form = httpx.post(f"{served.url}/completions", data={"prompt": "x"})
    assert form.status_code == 415
    assert "application/json" in form.json()["error"]["message"]


def test_a_body_that_is_too_large_gets_413(serving):
    with serving(max_body_bytes=1000) as small:
        assert post(small, "completions", {"prompt": "x", "max_tokens": 1}).status_code == 200
        answer = post(small, "completions", {"prompt": "x" * 1000})
        assert answer.status_code == 413
        assert "larger than 1000 bytes" in answer.json()["error"]["message"]

        def endless():
            yield b'{"prompt": "'
            for _ in range(100):
                yield b"x" * 100

        answer = httpx.post(
            f"{small.url}/completions",
            content=endless(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 413
