"""Many clients on one server for a while: are answers lost or mixed up, and does memory stay flat?

Starts `cospec-serve` with one slot and a short queue. The clients use OpenAI's own package. Answers are
streamed or whole, greedy, sampled with a seed, with an automatic draft length, in collab, or follow a
grammar; some clients leave in the middle, and some send requests that must be refused. Each answer is
compared with what `Session.generate` writes for the same request in this process. Exits with 1 if an
answer was wrong or lost, a hostile request was not refused, or the queue was longer than allowed.

    .venv/bin/python -m bench.serve_soak --engine-dir models/tiny --minutes 10
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TextIO

import click
import psutil

from cospec.runtime.decoding.session import load

MAX_TOKENS = 64
LONG_TOKENS = 400  # of an answer that is to be left: more than any client waits for
NAMES = {"guided_regex": "regex"}
"""Fields of requests whose generation option has another name."""
SETTLED = 0.1
"""Share of the time after which memory counts as that of the start: caches and pools are filled."""


@dataclass(frozen=True)
class Case:
    """A request: messages, what is special about it, other fields, and the expected text."""

    messages: list[dict[str, str]]
    kind: str
    fields: dict[str, Any]
    text: str

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of OpenAI's client."""
        given = {"model": "tiny", "messages": self.messages, "max_tokens": MAX_TOKENS}
        return {**given, "extra_body": dict(self.fields)}


HOSTILE: tuple[tuple[str, bytes], ...] = (
    (
        "nested lists",
        b'{"messages":[{"role":"user","content":"x","y":[' + b"[]," * 600_000 + b"[]]}]}",
    ),
    ("deep lists", b'{"messages":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    ("a long prompt", b'{"messages":[{"role":"user","content":"' + b"1 + 2 " * 300_000 + b'"}]}'),
    ("half a surrogate", b'{"model":"\\ud83d","messages":[{"role":"user","content":"x"}]}'),
    ("a long number", b'{"messages":[],"logit_bias":{"' + b"9" * 5000 + b'":1}}'),
    ("no JSON", b"\x00\xff" * 500),
    ("too much", b'{"messages":"' + b"x" * 3_000_000 + b'"}'),
)
"""Requests that must be refused, by what is wrong with them."""


@dataclass
class Tally:
    """What happened.

    Attributes:
        count: requests by how they ended.
        wrong: answers that were not the expected ones, with those.
        lost: errors that should not have been.
        memory: (seconds since the start, resident bytes of the server).
        waiting: longest queue seen.
    """

    count: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    waiting: int = 0


def cases(engine_dir: Path, count: int) -> list[Case]:
    """Return requests with the answers that a session gives without a server."""
    session = load(engine_dir)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("greedy", {"temperature": 0}),
        ("sampled", {"temperature": 1.0}),
        ("auto", {"temperature": 0, "num_draft_tokens": "auto"}),
        ("penalty", {"temperature": 0, "repetition_penalty": 1.2}),
    ]
    if session.arbiter is not None:
        kinds.append(("collab", {"temperature": 0, "mode": "collab"}))
    if find_spec("llguidance") is not None:
        kinds.append(("grammar", {"temperature": 0, "guided_regex": "The answer is [0-9]{1,4}"}))
    rng = random.Random(0)
    made = []
    for i in range(count):
        question = f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)} - {rng.randint(1, 9)}?"
        messages = [{"role": "user", "content": question}]
        kind, fields = kinds[i % len(kinds)]
        if kind == "sampled":
            fields = {**fields, "seed": i}
        # The draft length never changes a strict answer.
        options = {NAMES.get(name, name): value for name, value in fields.items()}
        options.pop("num_draft_tokens", None)
        text = session.generate(messages, max_tokens=MAX_TOKENS, **options).text
        made.append(Case(messages, kind, fields, text))
    return made


def gauge(text: str, name: str) -> float:
    """Return a figure of /metrics; 0 where it was never counted."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith((f"{name}{{", f"{name} "))
    )


async def client_loop(
    client: Any, known: list[Case], rng: random.Random, tally: Tally, end: float
) -> None:
    """Send one request after the other until the time is over."""
    import openai

    while monotonic() < end:
        case = rng.choice(known)
        how = rng.choices(["whole", "stream", "leave", "hostile"], [8, 8, 4, 1])[0]
        try:
            if how == "whole":
                answer = await client.chat.completions.create(**case.settings)
                check(answer.choices[0].message.content, case, tally)
            elif how == "stream":
                events = await client.chat.completions.create(**case.settings, stream=True)
                texts = [event.choices[0].delta.content or "" async for event in events]
                check("".join(texts), case, tally)
            elif how == "leave":
                await leave(client, case, rng, tally)
            else:
                await attack(client, rng, tally)
        except openai.RateLimitError as refused:
            tally.count["refused with 429"] += 1
            if int(refused.response.headers["retry-after"]) < 1:
                tally.lost.append("a 429 without a useful Retry-After")
            await asyncio.sleep(rng.uniform(0.05, 0.2))
        except openai.OpenAIError as error:
            tally.lost.append(f"{type(error).__name__}: {error}")


async def attack(client: Any, rng: random.Random, tally: Tally) -> None:
    """Send a request that must be refused; the queue may be full."""
    name, body = rng.choice(HOSTILE)
    headers = {"Content-Type": "application/json"}
    answer = await client._client.post("chat/completions", content=body, headers=headers)
    tally.count["refused: hostile"] += 1
    if answer.status_code not in (400, 413, 429):
        tally.lost.append(f"{name} got {answer.status_code}")


def check(text: str, case: Case, tally: Tally) -> None:
    """Compare an answer."""
    tally.count[f"answered: {case.kind}"] += 1
    if text != case.text:
        tally.wrong.append((text, case.text))


async def leave(client: Any, case: Case, rng: random.Random, tally: Tally) -> None:
    """Close the connection in the middle of a long answer, or while the request waits."""
    long = case.settings | {
        "max_tokens": LONG_TOKENS,
        "extra_body": {"min_tokens": LONG_TOKENS},
        "stream": True,
    }
    if rng.random() < 0.3:
        with suppress(asyncio.TimeoutError):
            events = await asyncio.wait_for(
                client.chat.completions.create(**long), rng.uniform(0.001, 0.3)
            )
            await events.close()
        tally.count["left before the answer began"] += 1
        return
    events = await client.chat.completions.create(**long)
    wanted = rng.randint(1, 20)
    async for _ in events:
        wanted -= 1
        if wanted == 0:
            break
    await events.close()
    tally.count["left in the answer"] += 1


async def watch(http: Any, root: str, pid: int, tally: Tally, start: float, end: float) -> None:
    """Look at the server once a second."""
    process = psutil.Process(pid)
    while monotonic() < end:
        tally.memory.append((monotonic() - start, process.memory_info().rss))
        metrics = (await http.get(f"{root}/metrics")).text
        tally.waiting = max(tally.waiting, int(gauge(metrics, "vllm:num_requests_waiting")))
        await asyncio.sleep(1)


async def probe(client: Any, case: Case, repeats: int) -> dict[str, float]:
    """Measure from outside how long a slot stays taken after its client has left; medians."""
    next_settings = case.settings | {"max_tokens": 1}
    long = case.settings | {
        "max_tokens": LONG_TOKENS,
        "extra_body": {"min_tokens": LONG_TOKENS},
        "stream": True,
    }
    idle, after, rounds = [], [], []
    for _ in range(repeats):
        await client.chat.completions.create(**next_settings)
        started = monotonic()
        await client.chat.completions.create(**next_settings)
        idle.append(monotonic() - started)
        events = await client.chat.completions.create(**long)
        times = []
        async for _ in events:
            times.append(monotonic())
            if len(times) == 12:
                break
        rounds += [b - a for a, b in pairwise(times[2:])]
        await events.close()
        started = monotonic()
        await client.chat.completions.create(**next_settings)
        after.append(monotonic() - started)
    return {
        "round_seconds": statistics.median(rounds),
        "idle_request_seconds": statistics.median(idle),
        "request_after_leaving_seconds": statistics.median(after),
    }


async def soak(
    url: str, pid: int, known: list[Case], clients: int, seconds: float
) -> tuple[Tally, str, dict[str, float]]:
    """Run the clients; return the tally, the server's metrics at the end, and the probe's figures."""
    import openai

    root, tally = url.removesuffix("/v1"), Tally()
    limits: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": 120}
    async with openai.AsyncOpenAI(**limits) as client:
        start = monotonic()
        end = start + seconds
        loops = [client_loop(client, known, random.Random(i), tally, end) for i in range(clients)]
        await asyncio.gather(*loops, watch(client._client, root, pid, tally, start, end))
        while True:  # those who left last
            metrics = (await client._client.get(f"{root}/metrics")).text
            if not gauge(metrics, "vllm:num_requests_running"):
                break
            await asyncio.sleep(0.05)
        tally.memory.append((monotonic() - start, psutil.Process(pid).memory_info().rss))
        return tally, metrics, await probe(client, known[1], 20)


def report(
    tally: Tally, metrics: str, probed: dict[str, float], max_queue: int, seconds: float
) -> dict[str, Any]:
    """Return all figures."""
    settled = [size for at, size in tally.memory if at >= SETTLED * seconds]
    cancelled = gauge(metrics, "cospec:rounds_after_cancel_count")
    within_one = sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith("cospec:rounds_after_cancel_bucket") and 'le="1.0"' in line
    )
    return {
        "seconds": seconds,
        "requests": dict(tally.count),
        "wrong": len(tally.wrong),
        "lost": len(tally.lost),
        "generated_tokens": int(gauge(metrics, "vllm:generation_tokens_total")),
        "max_queue": max_queue,
        "longest_queue_seen": tally.waiting,
        "rss_first_bytes": tally.memory[0][1],
        "rss_settled_bytes": settled[0],
        "rss_end_bytes": settled[-1],
        "rss_max_bytes": max(settled),
        "rss_each_minute": list({int(at // 60): size for at, size in tally.memory}.values()),
        "cancelled_in_a_slot": int(cancelled),
        "cancelled_free_within_one_round": int(within_one),
        "rounds_after_cancel_mean": gauge(metrics, "cospec:rounds_after_cancel_sum")
        / max(1, cancelled),
        "probe": probed,
    }


def first_line(log: TextIO, server: subprocess.Popen[bytes]) -> str:
    """Wait for the line in which the server says where it listens."""
    while server.poll() is None:
        log.seek(0)
        line = log.readline()
        if line.endswith("\n"):
            return line
        sleep(0.1)
    log.seek(0)
    raise click.ClickException(f"the server ended: {log.read()}")


@click.command()
@click.option("--engine-dir", default="models/tiny", show_default=True, type=Path)
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--clients", default=20, show_default=True)
@click.option("--max-queue", default=12, show_default=True)
@click.option("--cases", "count", default=60, show_default=True, help="Different requests.")
@click.option("--threads", default=1, show_default=True, help="Of the server's passes.")
def main(
    engine_dir: Path, minutes: float, clients: int, max_queue: int, count: int, threads: int
) -> None:
    """Soak a server and print the figures as JSON."""
    known = cases(engine_dir, count)
    code = "from cospec.runtime.cli.serve import main; main()"
    options = {"--engine-dir": engine_dir, "--port": 0, "--max-queue": max_queue}
    options |= {"--threads": threads, "--served-model-name": "tiny"}
    words = [str(word) for option in options.items() for word in option]
    # A pipe that nobody reads would stop the server; "a": reading here does not move its place.
    with tempfile.TemporaryFile("a+") as log:
        server = subprocess.Popen([sys.executable, "-c", code, *words], stderr=log)
        try:
            url = first_line(log, server).split()[-1]
            tally, metrics, probed = asyncio.run(
                soak(url, server.pid, known, clients, minutes * 60)
            )
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        said = log.readlines()[1:]
    figures = report(tally, metrics, probed, max_queue, minutes * 60)
    figures |= {"server_exit_code": server.returncode, "lines_on_stderr": len(said)}
    figures["last_on_stderr"] = said[-5:]
    figures["examples"] = {"wrong": tally.wrong[:3], "lost": tally.lost[:3]}
    click.echo(json.dumps(figures))
    if tally.wrong or tally.lost or tally.waiting > max_queue:
        sys.exit(1)


if __name__ == "__main__":
    main()
