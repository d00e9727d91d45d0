"""Queue, clients that leave, time, and an orderly end; rounds are let through one by one."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2 as httpx
import openai
import pytest
from http_server import events, until

from cospec.errors import BackendError, ResourceError, UsageError
from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.serve.requests import Defaults
from cospec.runtime.serve.server import is_loopback, listen

LABELS = '{engine="0",model_name="tiny"}'
LONG = {"prompt": "Q: What is 12 + 30?\nA:", "max_tokens": 200, "min_tokens": 200}


def ask(served, **more):
    return httpx.post(f"{served.url}/completions", json=LONG | more, timeout=60)


def stream(served, **more):
    return httpx.stream(
        "POST", f"{served.url}/completions", json=LONG | {"stream": True} | more, timeout=60
    )


def _has(scheduler, count):
    """Whether so many requests are in the server, all but one of them waiting."""
    return (scheduler.running, scheduler.waiting) == (1, count - 1)


def test_a_full_queue_refuses_and_says_when_to_come_back(serving, gated):
    with serving(sessions=[gated], max_queue=2) as served, ThreadPoolExecutor(3) as pool:
        scheduler = served.service.scheduler
        asked = []
        for count in (1, 2, 3):
            asked.append(pool.submit(ask, served, max_tokens=2, min_tokens=0))
            until(partial(_has, scheduler, count))
        refused = ask(served)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        with served.client() as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt="x")
        gauges = httpx.get(f"{served.root}/metrics").text
        assert f"vllm:num_requests_waiting{LABELS} 2.0" in gauges
        gated.permits.release(1000)
        answers = [one.result(60) for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
        assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_those_who_wait_are_served_in_their_order(serving, gated, session):
    prompts = [f"Number {number}" for number in range(4)]
    with serving(sessions=[gated]) as served, ThreadPoolExecutor(4) as pool:
        for count, prompt in enumerate(prompts, start=1):
            pool.submit(ask, served, prompt=prompt, max_tokens=2, min_tokens=0)
            until(partial(_has, served.service.scheduler, count))
        gated.permits.release(1000)
    decoded = [list(stream.prompt_tokens) for stream in gated.streams[-3:]]
    assert decoded == [session.encode(prompt) for prompt in prompts[1:]]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_the_slot_within_one_round(serving, gated, streamed):
    with serving(sessions=[gated]) as served:
        scheduler = served.service.scheduler
        body = json.dumps(LONG | {"stream": streamed}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        address = served.root.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            length = f"Content-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + length + body)
            gated.permits.release(4)  # the prompt and three rounds
            until(lambda: gated.passes == 5)
            if streamed:
                assert b"data: " in connection.recv(4096)
            assert scheduler.running == 1
        until(lambda: gated.told_to_end)
        assert scheduler.running == 1
        gated.permits.release(1)  # for the pass that runs, which is the last
        until(lambda: scheduler.running == 0)
        assert gated.passes == 5
        gated.permits.release(1000)
        assert ask(served, max_tokens=2, min_tokens=0).status_code == 200
        text = served.service.metrics.render().decode()
        assert (
            'cospec:rounds_after_cancel_bucket{engine="0",le="1.0",model_name="tiny"} 1.0' in text
        )
        assert 'finished_reason="abort",model_name="tiny"} 1.0' in text


def test_a_client_that_leaves_the_queue_gives_its_place_up(serving, gated):
    with serving(sessions=[gated], max_queue=1) as served, ThreadPoolExecutor(1) as pool:
        scheduler = served.service.scheduler
        first = pool.submit(ask, served, max_tokens=2, min_tokens=0)
        until(lambda: scheduler.running == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/completions", json=LONG, timeout=0.3)
        until(lambda: scheduler.waiting == 0)
        gated.permits.release(1000)
        assert first.result(60).status_code == 200
        assert len(gated.streams) == 1, "the one that was decoded"


def test_a_client_that_reads_nothing_keeps_no_slot(serving, session):
    with serving() as served:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = served.root.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        body = json.dumps(LONG | {"stream": True, "logprobs": 60}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: served.service.scheduler.running == 1)
        until(lambda: served.service.scheduler.running == 0)
        assert ask(served, max_tokens=2, min_tokens=0).status_code == 200
        connection.close()


def test_time_runs_out_in_the_slot_and_in_the_queue(serving, gated):
    with serving(sessions=[gated], timeout=0.5) as served, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, served)]
        until(lambda: served.service.scheduler.running == 1)
        asked.append(pool.submit(ask, served))
        assert asked[1].result(60).status_code == 504
        assert "waited in the queue" in asked[1].result().json()["error"]["message"]
        gated.permits.release(1000)
        late = asked[0].result(60)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert late.headers["x-should-retry"] == "false"
        assert "the answer took longer than the 0.5 seconds" in late.json()["error"]["message"]


def test_time_that_runs_out_in_a_stream_is_an_error_event(serving, gated):
    gated.permits.release(3)
    with serving(sessions=[gated], timeout=0.5) as served, stream(served) as response:
        assert response.status_code == 200
        received = events(response)
        assert "choices" in json.loads(next(received))
        time.sleep(0.6)
        gated.permits.release(1000)
        rest = list(received)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["error"]["code"] == "timeout"
    with serving(sessions=[gated], timeout=60) as served, served.client() as client:
        assert client.completions.create(model="tiny", prompt="x", max_tokens=1).choices


def test_a_backend_that_fails_is_a_500_and_the_next_request_works(serving, gated, monkeypatch):
    gated.permits.release(1000)
    with serving(sessions=[gated]) as served:

        def fail(*args, **settings):
            raise BackendError("out of luck")

        with monkeypatch.context() as broken:
            broken.setattr(gated.caches.target, "step", fail)
            failed = ask(served)
        assert failed.status_code == 500
        assert failed.json()["error"] == {
            "message": "out of luck",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        assert ask(served, max_tokens=2, min_tokens=0).status_code == 200


def test_a_bug_is_a_500_that_tells_nothing(serving, gated, monkeypatch):
    gated.permits.release(1000)
    with serving(sessions=[gated]) as served:
        monkeypatch.setattr(gated, "run", lambda _: {}["secret"])
        failed = ask(served)
        assert failed.status_code == 500
        assert failed.json()["error"]["message"] == "the server failed; its log says why"
        assert served.service.scheduler.running == 0


def test_the_slot_that_knows_the_prompt_is_chosen(serving, session):
    sessions = [session.new_session(), session.new_session()]
    with serving(sessions=sessions) as served:
        for prompt in ("Q: What is 12 + 30?\nA:", "Some other text"):
            first = ask(served, prompt=prompt, max_tokens=4, min_tokens=0).json()
            again = ask(served, prompt=prompt, max_tokens=4, min_tokens=0).json()
            assert first["usage"]["prompt_tokens_details"]["cached_tokens"] <= 1
            known = again["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert known == again["usage"]["prompt_tokens"] - 1


def test_stopping_finishes_what_runs_and_refuses_what_waits(serving, gated, session):
    expected = session.generate(LONG["prompt"], max_tokens=4).text
    with serving(sessions=[gated]) as served, ThreadPoolExecutor(2) as pool:
        scheduler = served.service.scheduler
        running = pool.submit(ask, served, max_tokens=4, min_tokens=0)
        until(lambda: scheduler.running == 1)
        waiting = pool.submit(ask, served)
        until(lambda: scheduler.waiting == 1)
        served.stop()
        refused = waiting.result(30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.root}/health")
        gated.permits.release(1000)
        assert running.result(30).json()["choices"][0]["text"] == expected


def test_addresses_that_cannot_be_had_are_errors_with_a_hint():
    with listen("127.0.0.1", 0) as taken, pytest.raises(ResourceError, match="another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot listen on no such host"):
        listen("no such host", 0)
    assert [is_loopback(each) for each in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(each) for each in ("0.0.0.0", "::", "example.org")] == [False] * 3


def test_a_default_that_no_request_could_use_is_refused_at_once(serving):
    for defaults in (
        Defaults("tiny", GenerationOptions(mode="collab")),
        Defaults("tiny", GenerationOptions(num_draft_tokens=1000)),
    ):
        with pytest.raises(UsageError), serving(defaults=defaults):
            pass


def test_no_answer_waits_for_acknowledgements():
    """Nagle's algorithm is off on accepted connections: it would hold back a body for 40 ms."""
    assert asyncio.run(option_of_accepted(socket.TCP_NODELAY)) != 0


async def option_of_accepted(option: int) -> int:
    """Return an option of a connection that asyncio accepted on our socket."""
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        seen.set_result(connection.getsockopt(socket.IPPROTO_TCP, option))
        writer.close()

    with listen("127.0.0.1", 0) as listening:
        listening.setblocking(False)
        server = await asyncio.start_server(accepted, sock=listening)
        _, writer = await asyncio.open_connection(*listening.getsockname())
        found = await asyncio.wait_for(seen, 30)
        writer.close()
        server.close()
        return found


def test_the_server_does_not_close_an_idle_connection_before_the_client_does(served):
    # httpx and OpenAI's client reuse connections that were idle for up to 5 seconds.
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(served.address, timeout=20) as connection:
        for pause in (5.5, 0):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                received = connection.recv(65536)
                assert received, "the server closed the connection"
                answer += received
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(pause)
