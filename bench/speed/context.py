"""How cost grows with the context: decoding behind so many tokens, and reading so many."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ...calibration.tables import markdown_table
from ...errors import UsageError
from .measure import Row, Samples, measure_rows
from .peer_formats import both
from .peers import genai_rows, our_rows
from .prepare import journal
from .speed import cpu_model, preparing, random_prompts, say

DRAFTED = 3

THEIR_BEST = ((0, "as it comes"), (DRAFTED, "spinning briefly"))
"""Of the settings of onnxruntime-genai, those that are fastest in `cospec-bench speed`."""


@dataclass(frozen=True)
class ContextConfig:
    """What to measure.

    Attributes:
        work: folder for what is made once.
        contexts: tokens before the first generated one.
        tokens: to generate behind each context.
        rounds: turns of each row at each context.
        threads: of every row.
        noise: of the controlled pair.
        peers: measure onnxruntime-genai too.
    """

    work: Path
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192)
    tokens: int = 32
    rounds: int = 3
    threads: int = 2
    noise: float = 0.2
    peers: bool = True


def measure_context(config: ContextConfig) -> dict[str, Any]:
    """Return `rows` (one a runtime, mode and context) and `environment`.

    A run that is stopped goes on with the next context.

    Raises:
        UsageError: a context that is too short, or none.
        CospecError: something cannot be made.
    """
    from tqdm import tqdm

    if not config.contexts or min(config.contexts) < 2:
        raise UsageError("contexts must hold at least 2 tokens each")
    capacity = max(config.contexts) + config.tokens
    with preparing(config.work) as workshop:
        pair = workshop.pair(config.noise)
        weights = both("fp32")
        bundle = workshop.bundle(pair, weights, capacity)
        rows = our_rows(bundle, weights, config.threads, (DRAFTED,), pools=("shared",))
        if config.peers:
            theirs = genai_rows(workshop, pair, weights, config.threads, capacity)
            rows += [row for row in theirs if (row.k, row.setting) in THEIR_BEST]
    kept = journal(config.work, "context", config, say)
    figures = []
    turns = len(rows) * (config.rounds + 1) * len(config.contexts)
    with tqdm(total=turns, unit="turn", disable=not sys.stderr.isatty()) as bar:
        for context in dict.fromkeys(config.contexts):
            bar.set_postfix_str(f"behind {context}", refresh=False)
            figures += kept.once(
                str(context),
                lambda context=context: _measured(  # type: ignore[misc]
                    config, rows, context, lambda row: bar.update() and None
                ),
            )
    kept.clear()
    return {
        "rows": figures,
        "environment": {
            "cpu": cpu_model(),
            "threads": config.threads,
            "tokens": config.tokens,
            "rounds": config.rounds,
            "noise": config.noise,
            "capacity": capacity,
        },
    }


def _measured(
    config: ContextConfig, rows: Sequence[Row], context: int, played: Callable[[Row], None]
) -> list[dict[str, Any]]:
    """Play the rows behind contexts of one length."""
    prompts = random_prompts(context, config.rounds, context)
    samples = measure_rows(rows, prompts, config.tokens, played=played, reading_once=True)
    return at_context(rows, samples, context)


def at_context(
    rows: Sequence[Row], samples: Sequence[Samples], context: int
) -> list[dict[str, Any]]:
    """Return the medians of each row behind contexts of one length."""
    figures = []
    for row, sample in zip(rows, samples, strict=True):
        figure: dict[str, Any] = {
            "name": row.name,
            "mode": row.mode,
            "setting": row.setting,
            "context": context,
        }
        if sample.error is not None:
            figure["skipped"] = sample.error
        else:
            first = median(sample.first)
            figure |= {
                "tokens_per_second": median(sample.decode_rates),
                "time_to_first_token_ms": 1000 * first,
                "prefill_tokens_per_second": context / first,
            }
        figures.append(figure)
    return figures


def as_markdown(result: dict[str, Any]) -> str:
    """Return what `measure_context` returned as two tables: a line a row, a column a context."""
    contexts = list(dict.fromkeys(figure["context"] for figure in result["rows"]))
    parts = []
    for title, key in (
        ("tokens a second behind a context of", "tokens_per_second"),
        ("tokens of the prompt read a second", "prefill_tokens_per_second"),
    ):
        lines: dict[tuple[str, str, str], list[str]] = {}
        for figure in result["rows"]:
            cells = lines.setdefault((figure["name"], figure["mode"], figure["setting"]), [])
            cells.append(f"{figure[key]:.1f}" if key in figure else "-")
        body = [[*name, *cells] for name, cells in lines.items()]
        parts.append(markdown_table((title, "mode", "setting", *map(str, contexts)), body))
    reasons = {f["skipped"]: f["name"] for f in result["rows"] if "skipped" in f}
    parts += [f"SKIPPED: {name}: {reason}" for reason, name in reasons.items()]
    environment = result["environment"]
    parts.append(f"{environment['cpu']}, {environment['threads']} threads, fp32.")
    return "\n\n".join(parts)
