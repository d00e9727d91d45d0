"""One speed measurement: rows prepared, played in turns, summed up, and set against the bounds."""

from __future__ import annotations

import os
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ...errors import UsageError
from ...runtime.bundle.reader import Bundle, find_bundle
from ...runtime.cli.engine_settings import Pool
from .bandwidth import PairBytes, ReadSpeed, sizes_of
from .measure import Row, Samples, distinct, measure_rows, paired_ratio
from .peer_formats import PairFormat, both
from .peers import OUR_DRAFT_LENGTHS, OURS, DraftLength, our_rows, peer_rows
from .prepare import Workshop
from .speed_summary import best_of_each, best_ratios, summarise

PROMPT_TOKENS = 32


@dataclass(frozen=True)
class SpeedConfig:
    """What to measure.

    Attributes:
        work: folder for what is made once.
        bundle: a bundle to measure by itself; None measures the controlled pair.
        noise: of the controlled pair.
        peers: names from `peers.PEERS`.
        formats: of the weights, at least one: ours, and those of peers that have them.
        threads: of every row.
        tokens: to generate.
        rounds: each with a prompt of its own.
        prompt_tokens: random tokens of a prompt of the controlled pair.
        capacity: of the controlled pair's caches, in tokens.
        texts: prompts for a bundle, one a round.
        lengths: draft lengths: ours, and those of peers that are among `peers.DRAFT_LENGTHS`.
        pools: of threads, for ours.
    """

    work: Path
    bundle: Path | None = None
    noise: float = 0.2
    peers: tuple[str, ...] = ()
    formats: tuple[PairFormat, ...] = (both("fp32"),)
    threads: int = 2
    tokens: int = 128
    rounds: int = 5
    prompt_tokens: int = PROMPT_TOKENS
    capacity: int = 2048
    texts: tuple[str, ...] = ()
    lengths: tuple[DraftLength, ...] = OUR_DRAFT_LENGTHS
    pools: tuple[Pool, ...] = ("own", "shared")


def measure_speed(config: SpeedConfig) -> dict[str, Any]:
    """Prepare and measure; return `rows`, `bounds`, `best`, `ratios` and `environment`.

    Raises:
        UsageError: settings that contradict each other.
        CospecError: our own rows cannot be made. A peer that cannot be had is a row with a reason.
    """
    _check(config)
    with preparing(config.work) as workshop:
        if config.bundle is not None:
            rows, folders, prompts = _bundle_rows(config, find_bundle(config.bundle))
        else:
            pair = workshop.pair(config.noise)
            folders = {
                weights: workshop.bundle(pair, weights, config.capacity)
                for weights in config.formats
            }
            rows = [
                row
                for weights, folder in folders.items()
                for row in our_rows(
                    folder, weights, config.threads, config.lengths, pools=config.pools
                )
            ]
            theirs = peer_rows(
                workshop, pair, config.peers, config.formats, config.threads, config.capacity
            )
            rows += [row for row in theirs if row.k == 0 or row.k in config.lengths]
            rows = distinct(rows)
            prompts = random_prompts(0, config.rounds, config.prompt_tokens)
    sizes = {weights: sizes_of(folder) for weights, folder in folders.items()}
    return _measured(config, rows, sizes, prompts)


def _check(config: SpeedConfig) -> None:
    if config.bundle is not None and config.peers:
        raise UsageError(
            "peers need checkpoints, and a bundle has graphs only",
            hint="compare runtimes on --pair controlled, or leave the peers out",
        )
    if not config.noise >= 0:
        raise UsageError(f"the noise is {config.noise}, but must be at least 0")
    needed = config.prompt_tokens + config.tokens
    if config.bundle is None and needed > config.capacity:
        raise UsageError(
            f"{config.prompt_tokens} + {config.tokens} tokens do not fit a capacity of "
            f"{config.capacity}",
            hint="generate fewer tokens",
        )


@contextmanager
def preparing(work: Path) -> Iterator[Workshop]:
    """Yield a workshop that says on stderr what it is making; one run at a time makes things there."""
    from filelock import FileLock

    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / ".lock"):
        yield Workshop(work, lambda what: say(f"{what} ..."))


def say(what: str) -> None:
    """Tell a person how far it is, on stderr."""
    import click

    click.echo(what, err=True)


def _bundle_rows(
    config: SpeedConfig, folder: Path
) -> tuple[list[Row], dict[PairFormat, Path], list[list[int]]]:
    """Return the rows of one bundle, its folder by format, and its prompts."""
    from ...runtime.text.codec import TextCodec

    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    target, draft = manifest.models.target, manifest.models.draft or manifest.models.target
    weights = PairFormat(target.weights or manifest.precision, draft.weights or manifest.precision)
    codec = TextCodec(bundle.path(manifest.tokenizer), None)
    texts = config.texts or BUNDLE_PROMPTS
    prompts = [codec.encode(texts[i % len(texts)]) for i in range(config.rounds)]
    longest = max(1, manifest.generation.num_draft_tokens)
    lengths = [k for k in config.lengths if k == "auto" or k <= longest]
    rows = our_rows(bundle.root, weights, config.threads, lengths, pools=config.pools)
    return rows, {weights: bundle.root}, prompts


BUNDLE_PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain how a heat pump works, and why it can deliver more heat than the power it takes.",
    "A train leaves at 9:40 and arrives at 13:05. It stops for 25 minutes. How long does it move?",
)


def random_prompts(seed: int, count: int, tokens: int) -> list[list[int]]:
    """Return prompts for the controlled pair without special tokens, the same in every run."""
    draw = random.Random(seed)
    return [[draw.randrange(2, 32000) for _ in range(tokens)] for _ in range(count)]


def _measured(
    config: SpeedConfig,
    rows: Sequence[Row],
    sizes: dict[PairFormat, PairBytes],
    prompts: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Play the rows and sum up."""
    from tqdm import tqdm

    reading = ReadSpeed(config.threads)
    load_before = os.getloadavg()[0]
    playable = sum(row.process is not None for row in rows)
    with tqdm(
        total=playable * (len(prompts) + 1), unit="turn", disable=not sys.stderr.isatty()
    ) as bar:

        def played(row: Row) -> None:
            bar.set_postfix_str(f"{row.name} {row.format} {row.mode}", refresh=False)
            bar.update()

        samples = measure_rows(
            rows,
            prompts,
            config.tokens,
            before_round=reading.take,
            played=played,
        )
    figures = summarise(rows, samples)
    return {
        "rows": figures,
        "bounds": _bounds(rows, samples, reading.samples, sizes),
        "best": best_of_each(figures),
        "ratios": best_ratios(figures),
        "environment": _environment(config, rows, samples, load_before),
    }


def _bounds(
    rows: Sequence[Row],
    samples: Sequence[Samples],
    read: Sequence[float],
    sizes: dict[PairFormat, PairBytes],
) -> dict[str, Any]:
    """Return what memory allows the target alone, and how much of it our plain rows reach.

    `formats` has the target's formats, `pair_bytes` those of pairs.
    """
    bytes_per_second = median(read)
    formats = {}
    for weights, size in {form.target: pair.target for form, pair in sizes.items()}.items():
        bound = bytes_per_second / size
        reached = [
            paired_ratio(sample.decode_rates, [rate / size for rate in read])
            for row, sample in zip(rows, samples, strict=True)
            if row.name == OURS and row.k == 0 and row.format == weights and sample.rates
        ]
        formats[weights] = {
            "streamed_bytes": size,
            "target_only_tokens_per_second": bound,
            "share_reached_by_our_target": max(reached, default=None),
        }
    return {
        "read_bytes_per_second": bytes_per_second,
        "read_bytes_per_second_by_round": list(read),
        "formats": formats,
        "pair_bytes": {str(weights): asdict(pair) for weights, pair in sizes.items()},
    }


def _environment(
    config: SpeedConfig, rows: Sequence[Row], samples: Sequence[Samples], load_before: float
) -> dict[str, Any]:
    """Return what the figures depend on beside the rows."""
    versions: dict[str, dict[str, str]] = {}
    for row, sample in zip(rows, samples, strict=True):
        if sample.versions:
            versions[row.name] = sample.versions
    return {
        "pair": "a bundle" if config.bundle is not None else "controlled",
        "noise": None if config.bundle is not None else config.noise,
        "threads": config.threads,
        "tokens": config.tokens,
        "prompt_tokens": config.prompt_tokens,
        "rounds": config.rounds,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "versions": versions,
    }


def cpu_model() -> str:
    """Return the processor's name and what of its instructions decides the speed of products."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    fields: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    telling = [f for f in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if f in flags]
    return f"{fields.get('model name', platform.processor())} ({', '.join(telling)})"
