"""Many clients on one server for a while: are answers lost or mixed up, and does memory stay flat?

Starts `cospec-serve` with three API keys and a short queue. The clients use OpenAI's own package.
Answers are streamed or whole: greedy, sampled with a seed, with an automatic draft length, in collab,
under a grammar, or calls of tools. Some clients leave in the middle, some send requests that must be
refused. Each answer is compared with what `Session.generate` writes for the same request in this
process; calls of tools with those of the idle server.

Prints a line each minute and all figures as JSON at the end. Exits with 1 if an answer was wrong or
lost, a hostile request was not refused, the server logged a line or ended badly, the queue was longer
than allowed, or memory grew.

    .venv/bin/python -m bench.serve_soak --engine-dir models/tiny --minutes 60 --think 4
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TextIO

import click
import psutil
from msgspec import structs

from cospec.runtime.bundle.files import sha256_of
from cospec.runtime.bundle.manifest import MANIFEST_NAME, FileEntry, to_json
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.text.chat_format import CHAT_FILE

from .soak_clients import TEMPLATE, Case, Tally, ask, cases, client_loop

KEYS = ("first", "second", "third")
SETTLED_MINUTES = 10.0
"""After these, caches and pools are filled; a shorter run takes half its time."""
GROWTH = 1.05
"""Most that the last minute's memory may be of the first settled minute's."""


def taught(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, and give it a chat template that knows tools."""
    root = Path(shutil.copytree(bundle, folder))
    chat = json.loads((root / CHAT_FILE).read_text())
    (root / CHAT_FILE).write_text(json.dumps(chat | {"templates": {"default": TEMPLATE}}))
    manifest = read_manifest(root)
    size, digest = (root / CHAT_FILE).stat().st_size, sha256_of(root / CHAT_FILE)
    files = [
        FileEntry(entry.path, size, digest) if entry.path == CHAT_FILE else entry
        for entry in manifest.files
    ]
    (root / MANIFEST_NAME).write_bytes(to_json(structs.replace(manifest, files=tuple(files))))
    return root


def gauge(text: str, name: str) -> float:
    """Return a figure of /metrics; 0 where it was never counted."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith((f"{name}{{", f"{name} "))
    )


async def watch(http: Any, root: str, pid: int, tally: Tally, start: float, end: float) -> None:
    """Look at the server once a second, and print a line each minute."""
    process, own = psutil.Process(pid), psutil.Process()
    minute = 0
    while monotonic() < end:
        tally.memory.append((monotonic() - start, process.memory_info().rss))
        metrics = (await http.get(f"{root}/metrics")).text
        tally.waiting = max(tally.waiting, int(gauge(metrics, "vllm:num_requests_waiting")))
        if (monotonic() - start) // 60 >= minute:
            seconds = [sum(each.cpu_times()[:2]) for each in (process, own)]
            click.echo(
                f"minute {minute}: {tally.memory[-1][1] / 2**20:.1f} MiB, "
                f"{sum(tally.count.values())} requests, {len(tally.wrong)} wrong, "
                f"{len(tally.lost)} lost, {process.num_fds()} descriptors, "
                f"{seconds[0]:.0f} s of CPU, clients {seconds[1]:.0f} s",
                err=True,
            )
            minute += 1
        await asyncio.sleep(1)


async def soak(
    url: str, pid: int, known: list[Case], count: int, seconds: float, think: float
) -> tuple[Tally, str]:
    """Run the clients; return the tally, and the server's metrics at the end."""
    import openai

    root, tally = url.removesuffix("/v1"), Tally()
    clients = [
        openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) for key in KEYS
    ]
    for at, case in enumerate(known):
        if case.expected is None:
            known[at] = replace(case, expected=await ask(clients[0], case))
    start = monotonic()
    end = start + seconds
    loops = [
        client_loop(clients[i % len(KEYS)], known, random.Random(i), tally, end, think)
        for i in range(count)
    ]
    http = clients[0]._client
    await asyncio.gather(*loops, watch(http, root, pid, tally, start, end))
    while True:  # those who left last
        metrics = (await http.get(f"{root}/metrics")).text
        if not gauge(metrics, "vllm:num_requests_running"):
            break
        await asyncio.sleep(0.05)
    tally.memory.append((monotonic() - start, psutil.Process(pid).memory_info().rss))
    for client in clients:
        await client.close()
    return tally, metrics


def report(tally: Tally, metrics: str, max_queue: int, seconds: float) -> dict[str, Any]:
    """Return all figures."""
    settled = min(60 * SETTLED_MINUTES, seconds / 2)
    minute = min(60.0, seconds / 4)
    first = [size for at, size in tally.memory if settled <= at < settled + minute]
    last = [size for at, size in tally.memory if at >= seconds - minute]
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
        "rss_settled_bytes": int(statistics.median(first)),
        "rss_end_bytes": int(statistics.median(last)),
        "rss_max_bytes": max(size for _, size in tally.memory),
        "rss_each_minute": list({int(at // 60): size for at, size in tally.memory}.values()),
        "cancelled_in_a_slot": int(cancelled),
        "cancelled_free_within_one_round": int(within_one),
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
@click.option("--think", default=0.0, show_default=True, help="Mean pause of a client, in seconds.")
@click.option("--slots", default=2, show_default=True, help="Requests decoded at a time.")
@click.option("--max-queue", default=12, show_default=True)
@click.option("--cases", "count", default=70, show_default=True, help="Different requests.")
@click.option("--threads", default=1, show_default=True, help="Threads of a forward pass.")
def main(
    engine_dir: Path,
    minutes: float,
    clients: int,
    think: float,
    slots: int,
    max_queue: int,
    count: int,
    threads: int,
) -> None:
    """Soak a server and print the figures as JSON."""
    code = "from cospec.runtime.cli.serve import main; main()"
    options = {"--port": 0, "--slots": slots, "--max-queue": max_queue, "--threads": threads}
    named = ["--served-model-name", "tiny"]
    # A pipe that nobody reads would stop the server; "a": reading here does not move its place.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("a+") as log:
        bundle = taught(engine_dir, Path(folder, "tiny"))
        known = cases(bundle, count)
        words = [str(word) for option in options.items() for word in option]
        server = subprocess.Popen(
            [sys.executable, "-c", code, "--engine-dir", str(bundle), *named, *words],
            stderr=log,
            env={**os.environ, "COSPEC_API_KEY": " ".join(KEYS)},
        )
        try:
            url = first_line(log, server).split()[-1]
            tally, metrics = asyncio.run(soak(url, server.pid, known, clients, minutes * 60, think))
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        said = log.readlines()[1:]
    figures = report(tally, metrics, max_queue, minutes * 60)
    figures |= {"server_exit_code": server.returncode, "lines_on_stderr": len(said)}
    figures["last_on_stderr"] = said[-5:]
    figures["examples"] = {"wrong": tally.wrong[:3], "lost": tally.lost[:3]}
    click.echo(json.dumps(figures))
    flat = figures["rss_end_bytes"] <= GROWTH * figures["rss_settled_bytes"]
    silent = not said and server.returncode == 0
    if tally.wrong or tally.lost or tally.waiting > max_queue or not flat or not silent:
        sys.exit(1)


if __name__ == "__main__":
    main()
