"""How the command ends: in order at the first signal, at once at the second."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2 as httpx
import pytest
from http_server import events

PROMPT = "Q: What is 12 + 30?\nA:"
SECONDS_A_PIECE = 0.05
CODE = f"""
import time
from cospec.runtime.decoding.completion import Stream
from cospec.runtime.cli.serve import main

def slowly(stream, after=Stream.__next__):
    time.sleep({SECONDS_A_PIECE})
    return after(stream)

Stream.__next__ = slowly
main()
"""
LONG = {"prompt": PROMPT, "max_tokens": 400, "min_tokens": 400, "num_draft_tokens": 0}


@contextmanager
def command(bundle, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run cospec-serve with answers of 50 ms a token; yield the process and the API's address."""
    words = [sys.executable, "-c", CODE, "--engine-dir", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stderr.readline()
        assert said.startswith("serving tiny on http://127.0.0.1:")
        yield process, said.split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def read(url, begun) -> list[str]:
    """Read a long stream to its end; return its events."""
    with httpx.stream(
        "POST", f"{url}/completions", json=LONG | {"stream": True}, timeout=60
    ) as response:
        received = events(response)
        got = [next(received)]
        begun.append(None)
        got += received
    return got


def wait(begun, count):
    while len(begun) < count:
        time.sleep(0.01)


def test_one_signal_finishes_what_runs(tiny_pair_bundle, session):
    expected = session.generate(PROMPT, max_tokens=20).text
    with command(tiny_pair_bundle) as (process, url), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            httpx.post,
            f"{url}/completions",
            json={"prompt": PROMPT, "max_tokens": 20, "num_draft_tokens": 0},
            timeout=60,
        )
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert asked.result(60).json()["choices"][0]["text"] == expected
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_a_second_signal_cuts_streams_with_an_error_and_ends_at_once(tiny_pair_bundle, signals):
    begun: list[None] = []
    with command(tiny_pair_bundle, "--slots", "2") as (process, url), ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(read, url, begun) for _ in range(2)]
        wait(begun, 2)
        waiting = pool.submit(httpx.post, f"{url}/completions", json=LONG, timeout=60)
        time.sleep(0.3)
        process.send_signal(signals[0])
        assert waiting.result(30).status_code == 503
        started = time.monotonic()
        process.send_signal(signals[-1])
        assert process.wait(30) == 128 + signals[-1]
        took = time.monotonic() - started
        for stream in streams:
            *_, error, end = stream.result(30)
            assert end == "[DONE]"
            assert json.loads(error)["error"]["code"] == "shutting_down"
        assert process.stderr.read() == ""
    assert took < LONG["max_tokens"] * SECONDS_A_PIECE / 2, "it did not wait for the answers"


@pytest.mark.parametrize("timeout", [0, 1])
def test_the_shutdown_timeout_cuts_streams_with_an_error(tiny_pair_bundle, timeout):
    begun: list[None] = []
    options = ("--slots", "4", "--shutdown-timeout", str(timeout))
    with command(tiny_pair_bundle, *options) as (process, url), ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(read, url, begun) for _ in range(3)]
        wait(begun, 3)
        whole = pool.submit(httpx.post, f"{url}/completions", json=LONG, timeout=60)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        for stream in streams:
            *_, error, end = stream.result(30)
            assert end == "[DONE]"
            assert json.loads(error)["error"]["code"] == "shutting_down"
        assert whole.result(30).status_code == 503
        assert process.wait(30) == 0
        assert process.stderr.read() == "", "neither tracebacks nor warnings"
