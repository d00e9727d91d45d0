"""What strangers send: no request gets a 5xx, a reset or a line in the log, and browsers stay out."""

from __future__ import annotations

import json
import threading
import tracemalloc
from http.client import HTTPConnection

import httpx2 as httpx
import pytest
from http_server import silence

from cospec.runtime.serve.fields import Fields
from cospec.runtime.serve.refusals import RefusedError
from cospec.runtime.serve.requests import Defaults, chat_request, completion_request

JSON = {"Content-Type": "application/json"}
HALF = "\ud83d"


def refusal(answer: bytes) -> tuple[int, dict]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/x.y\r\nHost: localhost\r\n\r\n",
        b"NO SUCH THING\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    ],
)
def test_what_is_not_http_is_refused_in_openais_form(served, data, caplog):
    with silence(caplog):
        status, error = refusal(served.exchange(data))
    assert (status, error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "garbage", [b"zz\r\n", b"5\r\nabc", b"5\r\nabcdefgh\r\n", b"ffffffffffffffffffffffff\r\n"]
)
@pytest.mark.parametrize("kind", [b"application/json", b"text/plain"])
@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_garbage_in_a_chunked_body_ends_the_request(served, garbage, kind, method, expect, caplog):
    head = method + b" /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + expect
    head += b"Transfer-Encoding: chunked\r\n"
    head += b"Content-Type: " + kind + b"\r\n\r\n"
    with silence(caplog):
        answer = served.exchange(head + garbage, close=True)
    assert b" 500 " not in answer.partition(b"\r\n")[0]
    assert httpx.get(f"{served.root}/health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1001, 300_000, 10_000_000])
def test_a_body_that_is_too_large_gets_413_and_no_reset(serving, size, chunked):
    body = b'{"prompt": "' + b"x" * size + b'"}'
    with serving(max_body_bytes=1000) as small:
        for _ in range(5):
            connection = HTTPConnection(*small.address, timeout=30)
            pieces = iter([body[: size // 2], body[size // 2 :]]) if chunked else body
            connection.request("POST", "/v1/completions", pieces, JSON, encode_chunked=chunked)
            answer = connection.getresponse()
            assert answer.status == 413
            assert "larger than 1000 bytes" in json.loads(answer.read())["error"]["message"]
            connection.close()


def test_a_client_that_asks_first_is_told_before_it_sends(serving):
    with serving(max_body_bytes=1000) as small:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        status, _ = refusal(small.exchange(head))
    assert status == 413


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": "x", "model": HALF}, 400),
        ({"prompt": "x", HALF: 1}, 400),
        ({"prompt": "x", "mode": HALF}, 400),
        ({"prompt": "x", "stream": True, "stream_options": {HALF: 1}}, 400),
        ({"prompt": HALF}, 400),
        ({"prompt": "x", "stop": HALF}, 400),
        ({"prompt": "x", "logit_bias": {HALF: 1}}, 400),
        ({"prompt": "x", "model": "\x00\x1b[31m\u202e😀"}, 404),
        ({"prompt": "x", "\x00\x1b[31m\u202e😀" * 200: 1}, 400),
        ({"prompt": "x", "mode": "\u202e😀" * 10_000}, 400),
        ({"prompt": "x", "tools": [{"a": "\u202e😀"}] * 10_000}, 400),
        ({"prompt": "x", "logit_bias": {"9" * 5000: 1}}, 400),
        ({"prompt": "x", "logit_bias": {"9" * 20: 1}}, 400),
        ({"prompt": "x", "logit_bias": {"-1": 1}}, 400),
        ({"prompt": "x", "logit_bias": {"٣": 1}}, 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_refusal_repeats_never_breaks_it(served, body, status, stream, caplog):
    with silence(caplog):
        for path in ("completions", "chat/completions"):
            answer = served.post(path, json.dumps({"stream": stream} | body).encode())
            assert answer.status_code in (status, 400)
            assert answer.json()["error"]["message"].isprintable()
            assert len(answer.content) < 10_000


NUMBERS = ["9" * 5000, "-" + "9" * 5000, "1e999", "-1e999", "NaN", "Infinity", "1e-999", "0.1e400"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "name",
    ["temperature", "top_p", "top_k", "seed", "max_tokens", "logprobs", "num_draft_tokens", "n"],
)
def test_numbers_without_bounds_are_refused_or_mean_something(served, name, number, caplog):
    with silence(caplog):
        answer = served.post(
            "completions", f'{{"prompt": "1", "max_tokens": 1, "{name}": {number}}}'.encode()
        )
    assert answer.status_code in (200, 400)


@pytest.mark.parametrize("depth", [20, 300, 950, 1050, 100_000])
@pytest.mark.parametrize(
    "name", ["prompt", "messages", "metadata", "tools", "stop", "logit_bias", "temperature"]
)
def test_deep_values_are_refused_or_ignored(served, name, depth, caplog):
    for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a":[', "]}]")):
        value = opening * depth + "1" + closing * depth
        with silence(caplog):
            for path in ("completions", "chat/completions"):
                answer = served.post(path, f'{{"max_tokens": 1, "{name}": {value}}}'.encode())
                assert answer.status_code == 400


@pytest.mark.parametrize(
    "fields", [b'"stop": "a", "stop": "b"', b'"stop": "a", "st\\u006fp": null']
)
def test_a_field_that_is_given_twice_is_refused(served, fields):
    answer = served.post("completions", b'{"prompt": "x", ' + fields + b"}")
    assert answer.status_code == 400
    assert "'stop' appears twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["%ed%a0%80", "%ff%fe", "%0d%0aX:%20y", "%00", "a/../../b", "x" * 5000, "%f0%9f%98%80"]
)
def test_names_in_addresses_never_break_a_refusal(served, path, caplog):
    with silence(caplog):
        for where in (f"/v1/models/{path}", f"/{path}"):
            request = f"GET {where} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            status, error = refusal(served.exchange(request.encode()))
            assert status == 404
            assert error["message"].isprintable()


LISTS = b"[" + b"[]," * 600_000 + b"[]]"
OBJECTS = b"[" + b'{"a\\"":"b"},' * 150_000 + b"1]"
TEXT = b'["' + b'[[{{,, \\"' * 150_000 + b'"]'


@pytest.mark.parametrize("many", [LISTS, OBJECTS])
def test_many_values_are_never_built(many):
    tracemalloc.start()
    try:
        Fields(b'{"prompt": "hi", "metadata": ' + many + b"}")
        for read, begin in (
            (completion_request, b'{"prompt": "hi", "stop": '),
            (chat_request, b'{"messages": [{"role": "user"}], "chat_template_kwargs": '),
            (chat_request, b'{"messages": '),
        ):
            body = begin + many + b"}"
            with pytest.raises(RefusedError, match=r"longer than|more than 50000 values"):
                read(body, Defaults("tiny"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(many), "copies of the bytes, and no objects"


def test_a_long_text_is_one_value():
    messages = [{"role": "user", "content": json.loads(TEXT)[0]}]
    request = chat_request(json.dumps({"messages": messages}).encode(), Defaults("tiny"))
    assert request.prompts == [messages]


def test_bodies_are_read_one_at_a_time_and_not_in_the_event_loop(serving, monkeypatch):
    threads = []
    with serving() as served:
        read = served.service._reader.read

        def spy(*args):
            threads.append(threading.current_thread().name)
            return read(*args)

        monkeypatch.setattr(served.service._reader, "read", spy)
        for _ in range(3):
            assert (
                served.post("completions", b'{"prompt": "x", "max_tokens": 1}').status_code == 200
            )
    assert threads == ["cospec-reader_0"] * 3


# Browsers

EVIL = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "[::2]"]
OWN = ["localhost", "LocalHost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost:1"]


def get(served, path, host):
    return httpx.get(f"{served.root}{path}", headers={"Host": host})


@pytest.fixture(scope="module")
def loopback(serving):
    with serving(known_hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})) as served:
        yield served


@pytest.mark.parametrize("host", [*EVIL, "", "localhost@evil.example", "localhost:80:80"])
def test_another_machines_name_is_refused_on_every_path(loopback, host, caplog):
    with silence(caplog):
        for path in ("/health", "/metrics", "/v1/models", "/nothing", "/"):
            answer = get(loopback, path, host)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")
        answer = loopback.post("completions", b'{"prompt": "x", "max_tokens": 1}', Host=host)
    assert answer.status_code == 403


@pytest.mark.parametrize("host", OWN)
def test_names_of_this_machine_are_served(loopback, host):
    host = host.format(port=loopback.address[1])
    assert get(loopback, "/health", host).status_code == 200
    answer = loopback.post("completions", b'{"prompt": "x", "max_tokens": 1}', Host=host)
    assert answer.status_code == 200


def preflight(served, origin):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "content-type, authorization"
    return httpx.options(f"{served.url}/chat/completions", headers=headers)


def test_pages_of_other_origins_get_nothing(served):
    answer = preflight(served, "https://evil.example")
    assert answer.status_code == 405
    posted = served.post(
        "completions", b'{"prompt": "x", "max_tokens": 1}', Origin="https://evil.example"
    )
    for each in (answer, posted):
        assert not [name for name in each.headers if name.startswith("access-control")]


def test_pages_of_named_origins_may_use_the_server(serving):
    with serving(cors_origins=("https://chat.example.org",)) as named:
        allowed = preflight(named, "https://chat.example.org")
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example.org"
        assert "access-control-allow-credentials" not in allowed.headers
        refused = preflight(named, "https://evil.example")
        assert "access-control-allow-origin" not in refused.headers
