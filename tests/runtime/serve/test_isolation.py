"""What one client does never changes, ends or reveals another client's answer."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2 as httpx
import pytest
from http_server import GatedSession, events, until

from cospec import SamplingParams

PROMPT = "Q: What is 625 times 4?\nA:"


def body(**more):
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": 60} | more


def post(served, key="none", **more):
    return served.post("completions", body(**more), Authorization=f"Bearer {key}")


ASKED = {
    "collab": {"mode": "collab"},
    "sampled": {"temperature": 1.0, "seed": 3},
    "logprobs": {"logprobs": 2},
    "penalty": {"repetition_penalty": 1.2},
    "plain": {},
}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_an_automatic_draft_length_harms_no_running_answer(serving, collab, asked, slots):
    sampling = {name: value for name, value in asked.items() if name != "mode"}
    own = collab.generate(
        PROMPT,
        max_tokens=60,
        sampling=SamplingParams(**sampling),
        mode=asked.get("mode", "strict"),
    )
    gated = GatedSession(collab)
    gated.permits.release(3)
    sessions = [gated, *(collab.new_session() for _ in range(slots - 1))]
    with (
        serving(sessions=sessions) as served,
        ThreadPoolExecutor(1) as pool,
        httpx.stream(
            "POST", f"{served.url}/completions", json=body(stream=True, **asked), timeout=60
        ) as response,
    ):
        received = events(response)
        chunks = [next(received)]
        other = pool.submit(post, served, num_draft_tokens="auto", max_tokens=3)
        until(lambda: other.done() or served.service.scheduler.waiting == 1)
        gated.permits.release(10_000)
        chunks += received
        assert other.result(60).status_code == 200
    *chunks, end = chunks
    assert end == "[DONE]"
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == own.text


class Panic(BaseException):
    """As libraries written in Rust raise them: no Exception."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [AssertionError, TypeError("x"), KeyError("secret"), Panic()])
@pytest.mark.parametrize("place", ["first pass", "later pass", "text"])
def test_any_failure_ends_with_an_error_and_a_logged_traceback(
    serving, gated, monkeypatch, caplog, failure, stream, place
):
    passes = 0
    step = gated.caches.target.step

    def fail(*args, **settings):
        nonlocal passes
        passes += 1
        if passes == (1 if place == "first pass" else 3):
            raise failure
        return step(*args, **settings)

    gated.permits.release(1000)
    with serving(sessions=[gated]) as served:
        with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
            if place == "text":
                monkeypatch.setattr(served.service._texts, "spell", lambda _: fail())
                passes = 2
                answer = post(served, stream=stream, logprobs=1)
            else:
                broken.setattr(gated.caches.target, "step", fail)
                answer = post(served, stream=stream)
        if stream and place == "later pass":
            assert answer.status_code == 200
            *_, error, end = events(answer)
            assert end == "[DONE]"
        elif stream and answer.status_code == 200:
            error = list(events(answer))[-2]
        else:
            assert answer.status_code == 500
            error = answer.text
        assert json.loads(error)["error"]["message"] == "the server failed; its log says why"
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info[1] is not None
        assert record.name.startswith("cospec.")
        monkeypatch.undo()
        assert post(served, max_tokens=2).status_code == 200
        assert served.service.scheduler.running == 0


def cached(answer) -> int | None:
    details = answer.json()["usage"].get("prompt_tokens_details")
    return None if details is None else details["cached_tokens"]


def test_caches_are_shared_within_one_key_only(serving, session):
    secret = "Q: my password is 48159 and nobody must know it\nA:"
    guess = "Q: my password is 481"
    with serving(api_keys=("alice", "bob"), sessions=[session.new_session()]) as served:
        ask = partial(post, served, max_tokens=2)
        first = ask("alice", prompt=secret)
        assert cached(ask("alice", prompt=secret)) == first.json()["usage"]["prompt_tokens"] - 1
        assert cached(ask("bob", prompt=guess)) == 0
        # Bob's own prompt is in the cache now, and Alice's is not.
        assert cached(ask("alice", prompt=guess)) == 0
        assert cached(ask("alice", prompt=guess)) > 0
        assert post(served, "carol").status_code == 401


def test_a_slot_of_ones_own_key_is_preferred(serving, session):
    sessions = [session.new_session(), session.new_session()]
    with serving(api_keys=("alice", "bob"), sessions=sessions) as served:
        for key in ("alice", "bob", "alice", "bob"):
            answer = post(served, key, max_tokens=2)
        assert cached(answer) == answer.json()["usage"]["prompt_tokens"] - 1
        again = post(served, "alice", max_tokens=2)
        assert cached(again) == again.json()["usage"]["prompt_tokens"] - 1


def test_the_number_of_cached_tokens_can_be_hidden(serving, session):
    with serving(hide_cached_tokens=True, sessions=[session.new_session()]) as served:
        for _ in range(2):
            answer = post(served, max_tokens=2)
            assert cached(answer) is None
            assert answer.json()["usage"]["total_tokens"] > 2
        streamed = post(served, stream=True, stream_options={"include_usage": True}, max_tokens=2)
        usage = json.loads(list(events(streamed))[-2])["usage"]
        assert "prompt_tokens_details" not in usage
        metrics = httpx.get(f"{served.root}/metrics").text
    hits = [
        line for line in metrics.splitlines() if line.startswith("vllm:prefix_cache_hits_total")
    ]
    assert [line.rsplit(" ", 1)[1] for line in hits] == ["0.0"]
