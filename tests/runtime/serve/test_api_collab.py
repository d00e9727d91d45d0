"""Collaboration over HTTP: the packaged tiny pair with the arbiter that comes with it."""

from __future__ import annotations

import httpx2 as httpx
import openai
import pytest

import cospec
from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.serve.requests import Defaults

# The target alone says 2400; the draft was trained on more of its kind.
MESSAGES = [{"role": "user", "content": "What is 625 times 4?"}]
PROMPT = "Q: What is 625 times 4?\nA:"


@pytest.fixture(scope="module")
def served(serving, collab):
    """A server that collaborates unless a request says otherwise."""
    defaults = Defaults("tiny", GenerationOptions(mode="collab"))
    with serving(sessions=[collab.new_session()], defaults=defaults) as running:
        yield running


def chat(client, **more):
    return client.chat.completions.create(model="tiny", messages=MESSAGES, **more)


def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_the_answer_is_what_the_session_generates_in_collab(client, collab):
    own = collab.generate(MESSAGES, mode="collab")
    assert own.provenance.count("draft") > 0, "the arbiter must have kept something"
    assert own.text != collab.generate(MESSAGES).text
    answer = chat(client)
    assert answer.choices[0].message.content == own.text
    assert answer.usage.completion_tokens == len(own.tokens)
    text = client.completions.create(model="tiny", prompt=PROMPT)
    assert text.choices[0].text == collab.generate(PROMPT, mode="collab").text


def test_a_stream_joins_to_the_same(client, collab):
    chunks = list(chat(client, stream=True))
    assert joined(chunks) == collab.generate(MESSAGES, mode="collab").text
    assert len(chunks) > 5, "it should come in pieces"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "strict"},
        {"mode": "collab"},
        {"mode": "collab", "threshold": 0.999},
        {"mode": "collab", "threshold": 1},
        {"mode": "collab", "num_draft_tokens": 2},
    ],
)
def test_a_request_chooses_for_itself(client, collab, asked, stream):
    answer = chat(client, stream=stream, extra_body=asked)
    text = joined(answer) if stream else answer.choices[0].message.content
    assert text == collab.generate(MESSAGES, **asked).text


def test_a_request_may_ask_for_collab_where_strict_is_the_default(serving, collab):
    with serving(sessions=[collab.new_session()]) as strict, strict.client() as client:
        assert chat(client).choices[0].message.content == collab.generate(MESSAGES).text
        own = collab.generate(MESSAGES, mode="collab").text
        assert chat(client, extra_body={"mode": "collab"}).choices[0].message.content == own


def test_a_seed_repeats_itself_in_collab_too(client, collab):
    sampling = cospec.SamplingParams(temperature=1.0, seed=11)
    own = collab.generate(MESSAGES, mode="collab", sampling=sampling).text
    for stream in (False, True):
        answer = chat(client, temperature=1.0, seed=11, stream=stream)
        assert (joined(answer) if stream else answer.choices[0].message.content) == own


def test_metrics_count_what_the_arbiter_kept(serving, collab):
    own = collab.generate(MESSAGES, mode="collab").stats
    defaults = Defaults("tiny", GenerationOptions(mode="collab"))
    with serving(sessions=[collab.new_session()], defaults=defaults) as fresh:
        with fresh.client() as client:
            chat(client)
        text = httpx.get(f"{fresh.root}/metrics").text
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = '{engine="0",model_name="tiny"}'
    assert float(found[f"cospec:mismatches_total{labels}"]) == own.num_mismatches
    assert float(found[f"cospec:overrides_total{labels}"]) == own.num_overrides > 0


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"mode": "oracle"}, "the values are: strict, collab"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"mode": "strict", "threshold": 0.5}, "'collab' only"),
        ({"num_draft_tokens": "auto"}, "'strict' only"),
    ],
)
def test_what_does_not_go_with_collab_is_refused(client, asked, part):
    with pytest.raises(openai.BadRequestError, match=part):
        chat(client, extra_body=asked)
