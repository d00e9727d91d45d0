"""How long do large bodies of some clients hold up the others?

Starts `cospec-serve`, lets one client stream answers and another ask /health without a pause, and sends
large bodies meanwhile. Prints, for each kind of body, the largest gap between two events of the stream
and the slowest answer of /health, in milliseconds. Ends with 1 if one of them is above the limit.

    cd tests && python -m attacks.http_stalls --engine-dir BUNDLE
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, sleep

import click

from .http_requests import PROMPT, command

SIZE = 2_000_000
KINDS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "nothing": (0, bytes),
    "20 bodies of nested lists": (
        20,
        lambda: b'{"prompt":"hi","metadata":[' + b"[]," * (SIZE // 3) + b"[]]}",
    ),
    "20 bodies of messages with nested lists": (
        20,
        lambda: (
            b'{"messages":[{"role":"user","content":"hi","x":[' + b"[]," * (SIZE // 3) + b"[]]}]}"
        ),
    ),
    "20 bodies of objects": (
        20,
        lambda: b'{"prompt":"hi","tools":[' + b'{"a":1},' * (SIZE // 8) + b"1]}",
    ),
    "20 bodies of names": (
        20,
        lambda: b"{" + b"".join(b'"a%d":0,' % i for i in range(SIZE // 10)) + b'"prompt":"hi"}',
    ),
    "5 prompts of words": (5, lambda: json.dumps({"prompt": "word " * (SIZE // 5)}).encode()),
    "5 prompts without spaces": (5, lambda: json.dumps({"prompt": "x" * SIZE}).encode()),
    "5 conversations": (
        5,
        lambda: json.dumps(
            {"messages": [{"role": "user", "content": "1 + 2 " * 330_000}]}
        ).encode(),
    ),
}


def post(address: tuple[str, int], body: bytes) -> int:
    """Send a body; return the status."""
    connection = HTTPConnection(*address, timeout=120)
    path = "/v1/chat/completions" if body.startswith(b'{"messages"') else "/v1/completions"
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def post_all(address: tuple[str, int], count: int, body: bytes) -> set[int]:
    """Send a body several times at once; return the statuses."""
    with ThreadPoolExecutor(max(1, count)) as pool:
        return set(pool.map(lambda _: post(address, body), range(count)))


def stream_gaps(address: tuple[str, int], over: threading.Event, gaps: list[float]) -> None:
    """Stream one answer after the other and note the gaps between events of one answer."""
    body = {"prompt": PROMPT, "max_tokens": 400, "min_tokens": 400, "stream": True}
    while not over.is_set():
        connection = HTTPConnection(*address, timeout=120)
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        answer.readline()
        last = monotonic()
        while line := answer.readline():
            if line.startswith(b"data: "):
                gaps.append(monotonic() - last)
                last = monotonic()
        connection.close()


def health_times(address: tuple[str, int], over: threading.Event, times: list[float]) -> None:
    """Ask /health without a pause and note the seconds of each answer."""
    while not over.is_set():
        started = monotonic()
        connection = HTTPConnection(*address, timeout=120)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        times.append(monotonic() - started)
        sleep(0.002)


def measure(address: tuple[str, int], count: int, body: bytes) -> tuple[float, float, set[int]]:
    """Return the largest gap of a stream, the slowest /health, in seconds, and the statuses."""
    over = threading.Event()
    gaps: list[float] = []
    times: list[float] = []
    watchers = [
        threading.Thread(target=stream_gaps, args=(address, over, gaps)),
        threading.Thread(target=health_times, args=(address, over, times)),
    ]
    for watcher in watchers:
        watcher.start()
    sleep(0.5)
    # In a process of their own: what they hold up in this one must not be measured.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        statuses = process.submit(post_all, address, count, body).result()
    sleep(0.5)
    over.set()
    for watcher in watchers:
        watcher.join()
    return max(gaps), max(times), statuses


@click.command()
@click.option("--engine-dir", default="models/tiny", show_default=True, type=Path)
@click.option("--limit", default=100.0, show_default=True, help="Of a gap, in milliseconds.")
def main(engine_dir: Path, limit: float) -> None:
    """Print the delays that large bodies cause."""
    slow = 0
    with command(engine_dir) as (address, _, _):
        click.echo(f"{'':42} {'stream':>7} {'health':>7}  ms, statuses")
        for name, (count, make) in KINDS.items():
            gap, health, statuses = measure(address, count, make())
            slow += max(gap, health) * 1000 > limit
            click.echo(f"{name:42} {gap * 1000:7.0f} {health * 1000:7.0f}  {sorted(statuses)}")
    click.echo(f"tried {len(KINDS)}, failed {slow}")
    sys.exit(slow > 0)


if __name__ == "__main__":
    main()
