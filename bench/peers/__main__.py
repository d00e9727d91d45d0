"""The command of the comparison: `python -m bench.peers`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from cospec.calibration.quality.machine_facts import machine_facts
from cospec.calibration.quality.speed import PROMPTS
from cospec.errors import UsageError
from cospec.runtime.bundle.reader import Bundle, find_bundle
from cospec.runtime.cli.common import CospecCommand, at_least, json_option, print_json
from cospec.runtime.text.codec import TextCodec

from .environments import Workshop
from .runtimes import OURS, Files, Settings, our_rows, peer_rows
from .turns import Row, Samples, figures, measure_rows

EPILOG = """
\b
Examples:
  python -m bench.peers --engine-dir bundles/qwen --gguf target.gguf --draft-gguf draft.gguf \\
    --peers llama.cpp
  python -m bench.peers --engine-dir bundles/qwen --checkpoint qwen-1.5b --draft-checkpoint qwen-0.5b \\
    --peers onnxruntime-genai,openvino-genai --rounds 5 --json

The first run makes an environment for each peer with pip: several GB below --work.
"""
_file = click.Path(path_type=Path, exists=True, dir_okay=False)
_folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option("--engine-dir", type=_folder, required=True, help="Our bundle.")
@click.option("--peers", default="llama.cpp", show_default=True, help="Names, separated by commas.")
@click.option("--gguf", type=_file, help="GGUF file of the target, for llama.cpp.")
@click.option("--draft-gguf", type=_file, help="GGUF file of the draft, for llama.cpp.")
@click.option("--checkpoint", type=_folder, help="Full-precision folder of the target.")
@click.option("--draft-checkpoint", type=_folder, help="Full-precision folder of the draft.")
@click.option(
    "--prompts", type=_file, help="JSON lines with `prompt` or `question`, one per round."
)
@click.option("--draft-lengths", default="2,3,4,5", show_default=True, help="Of every runtime.")
@click.option("--tokens", type=int, default=64, show_default=True, help="Tokens to generate.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each row.")
@click.option("--threads", type=int, default=2, show_default=True, help="Threads of every row.")
@click.option("--capacity", type=int, default=1024, show_default=True, help="Of peers' caches.")
@click.option("--work", type=click.Path(path_type=Path), default=".cache/peers", show_default=True)
@json_option
def main(
    engine_dir: Path,
    peers: str,
    gguf: Path | None,
    draft_gguf: Path | None,
    checkpoint: Path | None,
    draft_checkpoint: Path | None,
    prompts: Path | None,
    draft_lengths: str,
    tokens: int,
    rounds: int,
    threads: int,
    capacity: int,
    work: Path,
    as_json: bool,
) -> None:
    """Compare tokens per second with other runtimes on the same model, in turns."""
    from tqdm import tqdm

    for name, value in (("--tokens", tokens), ("--rounds", rounds), ("--threads", threads)):
        at_least(name, value, 1)
    if not all(word.strip().isdecimal() for word in draft_lengths.split(",")):
        raise UsageError(f"--draft-lengths: '{draft_lengths}' is not a list of numbers")
    files = Files(
        find_bundle(engine_dir),
        _both("--gguf", "--draft-gguf", gguf, draft_gguf),
        _both("--checkpoint", "--draft-checkpoint", checkpoint, draft_checkpoint),
    )
    settings = Settings(threads, capacity, tuple(int(word) for word in draft_lengths.split(",")))
    workshop = Workshop(work, lambda what: click.echo(f"{what} ...", err=True))
    rows = our_rows(files, settings)
    rows += peer_rows(workshop, [name.strip() for name in peers.split(",")], files, settings)
    bundle = Bundle.open(files.bundle)
    codec = TextCodec(bundle.path(bundle.manifest.tokenizer), None)
    texts = _texts(prompts) if prompts else list(PROMPTS)
    asked = [codec.encode(texts[i % len(texts)]) for i in range(rounds)]
    load_before = os.getloadavg()[0]
    running = sum(row.process is not None for row in rows)
    with tqdm(total=running * (rounds + 1), unit="turn", disable=not sys.stderr.isatty()) as bar:

        def progress(row: Row, so_far: Samples) -> None:
            bar.update()
            if (
                bar.disable and so_far.rates
            ):  # into a log, so that a run that is stopped is not lost
                latest = f"{so_far.rates[-1]:.2f} tok/s, first {1000 * so_far.first[-1]:.0f} ms"
                click.echo(f"{row}: {latest}", err=True)

        samples = measure_rows(rows, asked, tokens, progress=progress)
    result = figures(rows, samples, OURS)
    result["environment"] = machine_facts() | {
        "threads": threads,
        "tokens": tokens,
        "rounds": rounds,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }
    if as_json:
        print_json(result)
    else:
        click.echo(as_text(result))


def as_text(result: dict[str, Any]) -> str:
    """Return the result as aligned text."""
    lines = [f"{'row':<38}{'tok/s':>8}{'decode':>8}{'first ms':>10}{'MB':>7}{'speed-up':>10}"]
    for row in result["rows"]:
        if "skipped" in row:
            lines.append(f"{row['row']:<38}SKIPPED: {row['skipped']}")
            continue
        speedup = "-" if row["speedup"] is None else f"{row['speedup']:.2f}"
        lines.append(
            f"{row['row']:<38}{row['tokens_per_second']:>8.1f}"
            f"{row['decode_tokens_per_second']:>8.1f}{row['time_to_first_token_ms']:>10.0f}"
            f"{row['peak_memory_bytes'] / 1e6:>7.0f}{speedup:>10}"
        )
    for ratio in result["ratios"].values():
        lines.append(
            f"{ratio['ours']} / {ratio['theirs']}: {ratio['tokens_per_second']:.2f} in tokens per "
            f"second, {ratio['time_to_first_token']:.2f} in time to the first token"
        )
    return "\n".join(lines)


def _both(name: str, other: str, one: Path | None, two: Path | None) -> tuple[Path, Path] | None:
    """Return both files, or None if neither was given."""
    if (one is None) != (two is None):
        raise UsageError(f"{name} and {other} go together")
    return None if one is None or two is None else (one.resolve(), two.resolve())


def _texts(path: Path) -> list[str]:
    """Return the prompts of a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    texts = [row.get("prompt") or row.get("question") for row in rows]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{path}: every line needs a `prompt` or a `question`")
    return texts


if __name__ == "__main__":
    main()
