"""How much of a round is spent outside the engines: in our Python, not in ONNX Runtime.

Counts the seconds inside ONNX Runtime's run calls of draft and target, and compares with the wall
time of the decode rounds.

    .venv/bin/python -m bench.loop_overhead --engine-dir models/tiny --json
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from cospec.runtime.bundle.reader import Bundle, find_bundle
from cospec.runtime.decoding.session import Session, load
from cospec.runtime.engines.onnxruntime import OrtOptions


class TimedSession:
    """An ONNX Runtime session that adds up the time of its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0

    def run_with_iobinding(self, binding: Any) -> None:
        """Run, and count the time."""
        started = perf_counter()
        self._session.run_with_iobinding(binding)
        self.seconds += perf_counter() - started

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def measure(session: Session, tokens: list[int], max_tokens: int) -> dict[str, float]:
    """Decode once and return seconds in and out of the engines, with counts."""
    timed = []
    decoders: list[Any] = [session.caches.target, session.caches.draft]
    for decoder in decoders:
        if decoder is not None:
            decoder._session = TimedSession(getattr(decoder._session, "_session", decoder._session))
            timed.append(decoder._session)
    rounds = generated = 0
    inside = started = 0.0
    for piece in session.continue_tokens(tokens, max_tokens=max_tokens):
        if rounds == 0:  # the first round holds the prefill, and the first use of each binding
            started, inside = perf_counter(), sum(t.seconds for t in timed)
            generated -= len(piece.tokens)
        rounds += 1
        generated += len(piece.tokens)
    wall = perf_counter() - started
    inside = sum(t.seconds for t in timed) - inside
    return {"wall": wall, "inside": inside, "rounds": rounds - 1, "tokens": generated}


@click.command()
@click.option("--engine-dir", default="models/tiny", show_default=True)
@click.option("--prompt", default="Q: What is 12 + 30 - 5?\nA:", show_default=True)
@click.option("--max-tokens", default=128, show_default=True)
@click.option("--repeats", default=20, show_default=True)
@click.option("--threads", type=int, help="Threads of a pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    engine_dir: str,
    prompt: str,
    max_tokens: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the share of a round that our own code takes; medians over the repeats."""
    session = load(Path(engine_dir), options=OrtOptions(threads=threads))
    manifest = Bundle.open(find_bundle(engine_dir)).manifest
    tokens = session.codec.encode(prompt)
    measure(session, tokens, max_tokens)
    runs = [measure(session, tokens, max_tokens) for _ in range(repeats)]
    outside = [run["wall"] - run["inside"] for run in runs]
    result = {
        "bundle": manifest.name,
        "repeats": repeats,
        "rounds": runs[0]["rounds"],
        "tokens": runs[0]["tokens"],
        "share_outside_engines": statistics.median(
            out / run["wall"] for out, run in zip(outside, runs, strict=True)
        ),
        "microseconds_outside_per_round": statistics.median(
            1e6 * out / run["rounds"] for out, run in zip(outside, runs, strict=True)
        ),
        "microseconds_outside_per_token": statistics.median(
            1e6 * out / run["tokens"] for out, run in zip(outside, runs, strict=True)
        ),
        "milliseconds_per_round": statistics.median(
            1e3 * run["wall"] / run["rounds"] for run in runs
        ),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(
            f"{result['share_outside_engines']:.1%} of a round of "
            f"{result['milliseconds_per_round']:.2f} ms is outside the engines: "
            f"{result['microseconds_outside_per_round']:.0f} us a round, "
            f"{result['microseconds_outside_per_token']:.0f} us a token "
            f"({result['rounds']:.0f} rounds, {repeats} repeats)"
        )


if __name__ == "__main__":
    main()
