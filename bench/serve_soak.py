"""Many clients on one server for a while: are answers lost or mixed up, and does memory stay flat?

Starts `cospec-serve` with one slot and a short queue. The clients use OpenAI's own package: some
answers are streamed, some are not, some are drawn for a seed, and some clients leave in the middle.
Each answer is compared with what `Session.generate` writes for the same request in this process. Ends
with 1 if an answer was wrong or lost, or the queue longer than allowed.

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
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TextIO

import click
import psutil

from cospec import SamplingParams
from cospec.runtime.decoding.session import load

MAX_TOKENS = 64
LONG_TOKENS = 400
"""Of an answer that is to be left; more than any client waits for."""
SETTLED = 0.1
"""Share of the time after which memory counts as that of the start: caches and pools are filled."""


@dataclass(frozen=True)
class Case:
    """A request and its answer."""

    messages: list[dict[str, str]]
    seed: int | None
    text: str

    @property
    def settings(self) -> dict[str, Any]:
        """As OpenAI's client takes them."""
        drawn = {} if self.seed is None else {"temperature": 1.0, "seed": self.seed}
        return {"model": "tiny", "messages": self.messages, "max_tokens": MAX_TOKENS, **drawn}


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
    rng = random.Random(0)
    made = []
    for i in range(count):
        question = f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)} - {rng.randint(1, 9)}?"
        messages = [{"role": "user", "content": question}]
        seed = i if i % 3 == 0 else None
        params = SamplingParams() if seed is None else SamplingParams(temperature=1.0, seed=seed)
        made.append(
            Case(
                messages,
                seed,
                session.generate(messages, sampling=params, max_tokens=MAX_TOKENS).text,
            )
        )
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
        how = rng.choices(["whole", "stream", "leave"], [4, 4, 2])[0]
        try:
            if how == "whole":
                answer = await client.chat.completions.create(**case.settings)
                check(answer.choices[0].message.content, case, tally)
            elif how == "stream":
                events = await client.chat.completions.create(**case.settings, stream=True)
                texts = [event.choices[0].delta.content or "" async for event in events]
                check("".join(texts), case, tally)
            else:
                await leave(client, case, rng, tally)
        except openai.RateLimitError as refused:
            tally.count["refused with 429"] += 1
            if int(refused.response.headers["retry-after"]) < 1:
                tally.lost.append("a 429 without a useful Retry-After")
            await asyncio.sleep(rng.uniform(0.05, 0.2))
        except openai.OpenAIError as error:
            tally.lost.append(f"{type(error).__name__}: {error}")


def check(text: str, case: Case, tally: Tally) -> None:
    """Compare an answer."""
    tally.count["answered"] += 1
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
    figures |= {"server_exit_code": server.returncode}
    figures |= {"lines_on_stderr": len(said), "last_on_stderr": said[-5:]}
    figures["examples"] = {"wrong": tally.wrong[:3], "lost": tally.lost[:3]}
    click.echo(json.dumps(figures, indent=2))
    if tally.wrong or tally.lost or tally.waiting > max_queue:
        sys.exit(1)


if __name__ == "__main__":
    main()
