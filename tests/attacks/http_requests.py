"""Requests of every kind, well-formed to garbage: no 5xx, no traceback, no wrong form of a refusal.

Starts `cospec-serve` with a bundle, sends it requests that hypothesis makes from the API's fields and
from raw bytes, and prints a table. Ends with 1 if one of them failed, or if the server wrote anything.

    cd tests && python -m attacks.http_requests --engine-dir BUNDLE --requests 11000 --related 9
"""

from __future__ import annotations

import json
import random
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

import click
import hypothesis
from hypothesis import HealthCheck, Phase, given

from .http_bodies import PROMPT, requests

EXPECTED = (429, 503, 504)
"""Statuses above 429 that a server may send that works as it should."""
SECONDS = 60.0
"""After which a request without an answer counts as lost."""
GIVE_UP = 2.0
"""Seconds after which the client leaves if nothing came back: half a request has no answer."""
THREADS = 16
"""Most of them wait for the end of half a request."""
PART = 250
"""Requests with one seed."""


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


def relatives(data: bytes, count: int, draw: random.Random) -> Iterator[bytes]:
    """Yield a request again with one to three bytes of its body changed, if the body has a length."""
    head, _, body = data.partition(b"\r\n\r\n")
    if not body or b"\nContent-Length: " not in head:
        return
    for _ in range(count):
        changed = bytearray(body)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        yield head + b"\r\n\r\n" + bytes(changed)


def attack(address: tuple[str, int], count: int, seed: int, related: int = 0) -> Outcome:
    """Send `count` requests and `related` more like each of them, and go on after failures."""
    outcome, rng = Outcome(), random.Random(seed)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def send_all(data: bytes) -> None:
        for each in (data, *relatives(data, related, rng)):
            send(each)

    def send(data: bytes) -> None:
        try:
            answer = exchange(address, data)
            fault = fault_of(answer)
        except (OSError, ValueError, KeyError, TypeError) as error:
            answer, fault = b"", f"{type(error).__name__}: {error}"
        outcome.statuses[status_of(answer)] += 1
        if fault is not None:
            outcome.failures.append((fault, data))

    send_all()
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
@click.option("--requests", "count", default=10_000, show_default=True, help="Requests to make.")
@click.option(
    "--related", default=0, show_default=True, help="More like each, a few bytes changed."
)
@click.option("--seed", default=0, show_default=True, help="Of the first requests.")
def main(engine_dir: Path, count: int, related: int, seed: int) -> None:
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
            parts = (
                pool.submit(attack, address, min(PART, count - i), seed + i, related)
                for i in starts
            )
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
