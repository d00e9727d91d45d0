"""Requests of every kind, well-formed to garbage: no 5xx, no traceback, no wrong form of a refusal.

Starts `cospec-serve` with a bundle, sends it requests that hypothesis makes from the API's fields and
from raw bytes, and prints a table. Ends with 1 if one of them failed, or if the server wrote anything.

    cd tests && python -m attacks.http_requests --engine-dir BUNDLE --requests 100000
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import click
import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

PROMPT = "Q: What is 2 + 2?\nA:"
EXPECTED = (429, 503, 504)
"""Statuses above 429 that a server may send that works as it should."""
SECONDS = 60.0
"""After which a request without an answer counts as lost."""
GIVE_UP = 2.0
"""Seconds after which the client leaves if nothing came back: half a request has no answer."""
THREADS = 16
"""Most of them wait for the end of half a request."""
PART = 500
"""Requests with one seed."""

# JSON as text: there are no values for NaN, for half surrogates and for names that appear twice.
odd_text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\ud83d", "\udc00x", "\x00", "\u202e", "<|im_end|>", "{{ 1/0 }}", "a" * 5000]),
)
texts = odd_text.map(json.dumps)
numbers = st.one_of(
    st.integers(-3, 100).map(str),
    st.floats(allow_nan=True).map(json.dumps),
    st.sampled_from(
        ["1e999", "-0", "1.0", "9" * 30, "-" + "9" * 5000, "1e-400", "01", "+1", "0x1"]
    ),
)
words = st.sampled_from(["true", "false", "null", "None", "tru", "", "''"])
anything = st.recursive(
    st.one_of(texts, numbers, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(texts, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{k}:{v}" for k, v in pairs) + "}"
        ),
        st.tuples(st.sampled_from([3, 100, 2000]), inner).map(
            lambda nested: "[" * nested[0] + nested[1] + "]" * nested[0]
        ),
    ),
    max_leaves=5,
)
MESSAGE = '{"role":"user","content":"What is 2 + 2?"}'
messages = st.lists(
    st.one_of(
        st.just(MESSAGE),
        st.sampled_from(
            [
                '{"role":"developer","content":[{"type":"text","text":"x","cache_control":{}}]}',
                '{"role":"assistant","content":"x","reasoning_content":"y","refusal":null}',
                '{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}',
                '{"role":"tool","content":"x","tool_call_id":"1"}',
                '{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}',
                '{"role":"user"}',
                "{}",
            ]
        ),
        anything,
    ),
    max_size=3,
).map(lambda items: f"[{','.join(items)}]")
RIGHT: dict[str, Any] = {
    "model": st.just('"tiny"'),
    "messages": messages,
    "prompt": st.one_of(st.just(json.dumps(PROMPT)), texts, st.just('["a","b"]'), st.just("[1,2]")),
    "input": st.one_of(st.just('"x"'), messages),
    "max_tokens": st.integers(0, 12).map(str),
    "stream": st.sampled_from(["true", "false"]),
    "stream_options": st.sampled_from(['{"include_usage":true}', "{}"]),
    "temperature": st.sampled_from(["0", "0.7", "2"]),
    "top_p": st.sampled_from(["0.1", "1", "0"]),
    "top_k": st.sampled_from(["-1", "0", "5"]),
    "seed": st.integers(-5, 5).map(str),
    "stop": st.sampled_from(['"a"', '["a","b"]', "[]", '""']),
    "logprobs": st.sampled_from(["true", "false", "0", "3", "64", "65"]),
    "top_logprobs": st.integers(0, 21).map(str),
    "logit_bias": st.sampled_from(
        ['{"5":1}', '{"' + "9" * 5000 + '":1}', '{"x":1}', '{"1":1e999}']
    ),
    "min_tokens": st.integers(-1, 5).map(str),
    "mode": st.sampled_from(['"strict"', '"collab"', '"x"']),
    "threshold": st.sampled_from(["0", "0.5", "2"]),
    "num_draft_tokens": st.sampled_from(["0", "3", '"auto"', "100"]),
    "n": st.sampled_from(["1", "2", "0", "1000000"]),
    "echo": st.sampled_from(["true", "false"]),
    "tools": st.sampled_from(["[]", '[{"type":"function","function":{"name":"f"}}]']),
    "tool_choice": st.sampled_from(['"auto"', '"required"', '{"type":"function"}']),
    "response_format": st.sampled_from(
        [
            '{"type":"text"}',
            '{"type":"json_object"}',
            '{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}}',
            '{"type":"json_schema","json_schema":{"name":"x","schema":{"$ref":"#"}}}',
        ]
    ),
    "chat_template_kwargs": st.sampled_from(['{"enable_thinking":false}', "{}", "[]"]),
    "reasoning_effort": st.sampled_from(['"low"', '"none"', "1"]),
    "continue_final_message": st.sampled_from(["true", "false"]),
    "add_generation_prompt": st.sampled_from(["true", "false"]),
    "stop_token_ids": st.sampled_from(["[1,2]", "[-1]", "[]"]),
    "overflow": st.sampled_from(['"stop"', '"slide"']),
}
names = st.one_of(st.sampled_from(sorted(RIGHT)).map(json.dumps), texts)


def one_in(count: int) -> st.SearchStrategy[bool]:
    """Return a strategy that is True once in so many times."""
    return st.sampled_from([True] + [False] * (count - 1))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies of the API: mostly right, some fields wrong, some bytes changed."""
    chat = draw(st.booleans())
    pairs = [('"messages"', f"[{MESSAGE}]") if chat else ('"prompt"', json.dumps(PROMPT))]
    pairs.append(('"max_tokens"', "4"))
    for name in draw(st.lists(st.sampled_from(sorted(RIGHT)), max_size=3, unique=True)):
        pairs = [pair for pair in pairs if pair[0] != f'"{name}"']
        value = draw(anything if draw(one_in(10)) else RIGHT[name])
        pairs.append((f'"{name}"', value))
    if draw(one_in(10)):
        pairs.append((draw(names), draw(anything)))
    text = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.sampled_from([0] * 8 + [1, 3]))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


paths = st.one_of(
    st.sampled_from(
        [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/tokenize",
            "/detokenize",
            "/v1/models",
            "/health",
            "/metrics",
            "/",
        ]
    ),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=8).map(
        lambda text: f"/v1/models/{text}"
    ),
    st.sampled_from(
        ["/v1/models/%ed%a0%80", "/%00", "/v1//", "*", "http://x/", "/v1/models/" + "x" * 9000]
    ),
)
headers = st.lists(
    st.sampled_from(
        [
            "Authorization: Bearer \xff",
            "Origin: http://evil.example",
            "Expect: 100-continue",
            "Accept-Encoding: gzip",
            "Content-Encoding: gzip",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "X: " + "x" * 5000,
            "Cookie: \x80",
            "Bad Header: x",
            "Content-Length: 3",
            "Transfer-Encoding: gzip, chunked",
        ]
    ),
    max_size=2,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Whole requests as bytes: mostly well-formed HTTP around a body, or around garbage."""
    if draw(one_in(20)):
        return draw(st.binary(max_size=300))
    body = draw(st.binary(max_size=100) if draw(one_in(10)) else bodies())
    path = draw(
        paths if draw(one_in(5)) else st.sampled_from(["/v1/chat/completions", "/v1/completions"])
    )
    method = draw(st.sampled_from(["POST"] * 40 + ["GET", "PUT", "HEAD", "OPTIONS", "X"]))
    kind = draw(
        st.sampled_from(["application/json"] * 20 + ["text/plain", "application/json; x=\xff"])
    )
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    lines += ["Connection: close"]
    if draw(one_in(5)):
        lines += draw(headers)
    if draw(one_in(6)):
        lines.append("Transfer-Encoding: chunked")
        body = (
            f"{len(body):x}\r\n".encode()
            + body
            + draw(st.sampled_from([b"\r\n0\r\n\r\n"] * 3 + [b"\r\n", b"", b"zz\r\n"]))
        )
    else:
        lines.append(f"Content-Length: {len(body) + draw(st.sampled_from([0] * 40 + [-1, 5]))}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def exchange(address: tuple[str, int], data: bytes, patience: float = GIVE_UP) -> bytes:
    """Send bytes and return all that comes back; leave after `patience` seconds without an answer."""
    with socket.create_connection(address, timeout=patience) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while True:
                try:
                    received = connection.recv(65536)
                except TimeoutError:
                    connection.settimeout(SECONDS)
                    if not answer:
                        connection.shutdown(socket.SHUT_WR)  # to the server the client has left
                    continue
                if not received:
                    break
                answer += received
        except ConnectionError:  # what was sent is no HTTP, and nobody reads the rest of it
            pass
    return answer


def fault_of(answer: bytes) -> str | None:
    """Return what is wrong with an answer, or None. No answer at all is right for half a request."""
    if not answer:
        return None
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status >= 500 and status not in EXPECTED:
        return f"status {status}"
    if b"text/event-stream" in head:
        if b"data: [DONE]\n\n" not in body:
            return "a stream without an end"
        return "an error of the server in a stream" if b'"server_error"' in body else None
    if status >= 400 and body:
        error = json.loads(body)["error"]
        if set(error) != {"message", "type", "param", "code"}:
            return f"a refusal in another form: {error}"
    return None


def status_of(answer: bytes) -> str:
    """Return the status of an answer for the table."""
    return answer.split(b" ", 2)[1].decode() if answer else "closed"


@dataclass
class Outcome:
    """What a run of requests found: answers by status, and the first failures."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, bytes]] = field(default_factory=list)


def attack(address: tuple[str, int], count: int, seed: int) -> Outcome:
    """Send `count` requests, and go on after failures."""
    outcome = Outcome()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def send(data: bytes) -> None:
        try:
            answer = exchange(address, data)
            fault = fault_of(answer)
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer, fault = b"", f"{type(error).__name__}: {error}"
        outcome.statuses[status_of(answer)] += 1
        if fault is not None:
            outcome.failures.append((fault, data))

    send()
    return outcome


@contextmanager
def command(engine_dir: Path) -> Iterator[tuple[tuple[str, int], Path, int]]:
    """Run cospec-serve; yield its address, the file that it writes to, and its process id."""
    code = "from cospec.runtime.cli.serve import main; main()"
    words = [sys.executable, "-c", code, "--engine-dir", str(engine_dir), "--port", "0"]
    words += ["--served-model-name", "tiny", "--slots", "2", "--timeout", "60"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            server = subprocess.Popen(words, stderr=stream)
        try:
            while "/v1\n" not in log.read_text():
                if server.poll() is not None:
                    raise click.ClickException(f"the server ended: {log.read_text()}")
                sleep(0.1)
            host, port = log.read_text().split("http://")[1].split("/")[0].split(":")
            yield (host, int(port)), log, server.pid
        finally:
            server.terminate()
            server.wait()


@click.command()
@click.option("--engine-dir", default="models/tiny", show_default=True, type=Path)
@click.option("--requests", "count", default=10_000, show_default=True, help="Requests to send.")
@click.option("--seed", default=0, show_default=True, help="Of the first requests.")
def main(engine_dir: Path, count: int, seed: int) -> None:
    """Send requests of every kind to a server, and print what came back."""
    import psutil

    total = Outcome()
    started = monotonic()
    with command(engine_dir) as (address, log, pid):
        right = f'{{"prompt": {json.dumps(PROMPT)}, "max_tokens": 8}}'
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(right)}\r\n\r\n"
        expected = json.loads(
            exchange(address, (head + right).encode(), SECONDS).split(b"\r\n\r\n")[1]
        )
        with ThreadPoolExecutor(THREADS) as pool:
            starts = range(0, count, PART)
            parts = (pool.submit(attack, address, min(PART, count - i), seed + i) for i in starts)
            for part in list(parts):
                total.statuses += part.result().statuses
                total.failures += part.result().failures
                done = sum(total.statuses.values())
                memory = psutil.Process(pid).memory_info().rss >> 20
                click.echo(
                    f"{done} requests, {monotonic() - started:.0f} s, {memory} MiB", err=True
                )
        after = json.loads(
            exchange(address, (head + right).encode(), SECONDS).split(b"\r\n\r\n")[1]
        )
        said = log.read_text().splitlines()[1:]
    for status, times in sorted(total.statuses.items()):
        click.echo(f"{status:>8} {times:>8}")
    for fault, data in total.failures[:5]:
        click.echo(f"{fault}: {data!r}")
    same = after["choices"] == expected["choices"]
    click.echo(
        f"{len(said)} lines logged, the answer afterwards is {'the same' if same else 'another one'}"
    )
    if said:
        click.echo("\n".join(said[-60:]))
    failed = len(total.failures) + len(said) + (not same)
    click.echo(f"tried {sum(total.statuses.values())}, failed {failed}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
