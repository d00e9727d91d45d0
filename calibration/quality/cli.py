"""cospec-bench: measurements that compare ways of decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ...runtime.cli.common import (
    CospecCommand,
    CospecGroup,
    at_least,
    engine_dir_option,
    json_option,
    print_json,
)
from ..tables import text_table
from .speed import speed

EPILOG = """
\b
Examples:
  cospec-bench quality --engine-dir models/tiny --tasks tiny:test --items 2000 \\
    --modes target,draft,strict,collab,random,typical:0.3,0.09
  cospec-bench quality --engine-dir models/tiny --tasks tiny:validation \\
    --modes target,collab --thresholds 0.3,0.5,0.7,0.9 --results curve.jsonl --plot curve.png

\b
Modes:
  target         the target alone, one token a pass
  draft          the draft alone
  strict         speculation that yields the target's output
  collab         the arbiter at the bundle's threshold, or at each of --thresholds
  collab@0.5     at that threshold
  random         keeps mismatches blindly, as often as the first collab mode does
  random:RATE    keeps each with that probability
  always-draft   keeps all
  typical:EPSILON,ALPHA   relaxed:TOP_N,DELTA   fly:WINDOW,ENTROPY   ensemble:WEIGHT
"""

_COLUMNS = (
    ("accuracy", "accuracy", "{:.2%}"),
    ("tok/pass", "tokens_per_target_pass", "{:.3f}"),
    ("tok/s", "tokens_per_second", "{:.0f}"),
    ("ms/item", "seconds_per_item", "{:.2f}"),
    ("tok/item", "tokens_per_item", "{:.1f}"),
    ("overrides", "override_rate", "{:.2%}"),
)


@click.group(cls=CospecGroup)
def main() -> None:
    """Measure accuracy and speed of a bundle's ways to decode."""


main.add_command(speed)


@main.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option("--tasks", required=True, help="A task file, tiny:SPLIT, or a benchmark's name.")
@click.option("--items", type=int, help="Items to play. Default: all, of tiny tasks 1000.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which items are drawn.")
@click.option(
    "--modes",
    default="target,draft,strict",
    show_default=True,
    help="Ways of decoding, separated by commas; see below.",
)
@click.option("--thresholds", help="Thresholds of collab, separated by commas.")
@click.option(
    "--arbiter",
    "arbiters",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An arbiter graph instead of the bundle's own; several make collab[1], collab[2], ...",
)
@click.option("--processes", type=int, default=1, show_default=True, help="One thread each.")
@click.option("--num-draft-tokens", type=int, help="Tokens to draft a round.")
@click.option("--max-tokens", type=int, help="Tokens that an answer may take.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of finished answers (JSONL): a run that was stopped goes on from it.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw accuracy against tokens per target pass.",
)
@json_option
def quality(
    engine_dir: Path,
    tasks: str,
    items: int | None,
    seed: int,
    modes: str,
    thresholds: str | None,
    arbiters: tuple[Path, ...],
    processes: int,
    num_draft_tokens: int | None,
    max_tokens: int | None,
    results: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare ways of decoding by accuracy and speed on the same items."""
    from ...runtime.bundle.reader import find_bundle, read_manifest
    from ..tasks.resolve import resolve_tasks
    from .accuracy_plot import plot_quality, require_matplotlib
    from .measurement import measure_quality
    from .modes import parse_modes, split_names
    from .worker import QualityConfig

    at_least("--processes", processes, 1)
    at_least("--num-draft-tokens", num_draft_tokens, 1)
    at_least("--max-tokens", max_tokens, 1)
    if plot is not None:
        require_matplotlib()  # now, and not after an hour of playing
    folder = find_bundle(engine_dir)
    own = read_manifest(folder).models.arbiter
    wanted = parse_modes(
        split_names(modes),
        own_threshold=None if own is None else own.threshold,
        thresholds=_numbers("--thresholds", thresholds),
        graphs=arbiters,
    )
    config = QualityConfig(folder, num_draft_tokens, max_tokens, processes)
    chosen = resolve_tasks(tasks, items=items, seed=seed)
    result = measure_quality(config, chosen, wanted, results)
    result["environment"] |= {"tasks": tasks, "seed": seed}
    if plot is not None:
        plot_quality(result, plot)
    if as_json:
        print_json(result)
    else:
        click.echo(as_table(result))


def as_table(result: dict[str, Any]) -> str:
    """Return what `measure_quality` returned as text for people."""
    rows = [["mode", *(title for title, _, _ in _COLUMNS)]]
    for name, figures in result["modes"].items():
        shown = dict(figures, seconds_per_item=1000 * figures["seconds_per_item"])
        cells = [
            "-" if shown[key] is None else form.format(shown[key]) for _, key, form in _COLUMNS
        ]
        rows.append([name, *cells])
    lines = text_table(rows, right=range(1, len(rows[0])))
    n = next(iter(result["modes"].values()))["n"]
    lines.append(f"\n{n} items")
    if result["oracle"]["accuracy"] is not None:
        lines[-1] += f"; either model alone is right on {result['oracle']['accuracy']:.2%}"
    lines += [f"McNemar p, {name}: {p:.2g}" for name, p in result["mcnemar"].items()]
    return "\n".join(lines)


def _numbers(name: str, text: str | None) -> list[float]:
    """Parse numbers from 0 to 1, separated by commas."""
    values = []
    for word in text.split(",") if text else []:
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise UsageError(f"{name}: '{word}' is not a number from 0 to 1")
        values.append(value)
    return values
