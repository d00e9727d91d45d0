"""cospec-bench: measurements that compare ways of decoding."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ...errors import MissingExtraError, UsageError
from ...runtime.cli.common import (
    CospecCommand,
    CospecGroup,
    at_least,
    engine_dir_option,
    json_option,
    print_json,
)
from ..tasks.isolation import LEVELS, STRONGEST, Isolation
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
  target         the target alone, one token per pass
  draft          the draft alone
  sample:TEMPERATURE,SEED   tokens drawn from the target alone
  strict         speculation that yields the target's output
  collab         the arbiter at the bundle's threshold, or at each of --thresholds
  collab@0.5     at that threshold
  random         keeps mismatches blindly, as often as the first collab mode does
  random:RATE    keeps each with that probability
  always-draft   keeps all
  typical:EPSILON,ALPHA   relaxed:TOP_N,DELTA   fly:WINDOW,ENTROPY   ensemble:WEIGHT
"""

LM_EVAL_EPILOG = """
\b
Examples:
  cospec-bench lm-eval --model_args engine_dir=models/tiny,mode=collab --tasks gsm8k --limit 200 \\
    --apply_chat_template --use_cache .cache/answers --output_path results
  cospec-bench lm-eval --model_args engine_dir=models/tiny,mode=target --include_path my-tasks \\
    --tasks my_task
  cospec-bench lm-eval run --help
"""

RUN_OPTIONS = (
    click.option(
        "--processes",
        type=int,
        help="Worker processes. Default: 1, and on a cluster as many as its CPUs allow.",
    ),
    click.option(
        "--threads",
        type=int,
        default=1,
        show_default=True,
        help="Threads of each worker's engines.",
    ),
    click.option(
        "--cluster",
        default="local",
        show_default=True,
        metavar="local|ADDRESS",
        help="Run the workers on this machine, or on the Ray cluster at ADDRESS (such as "
        "10.0.0.1:6379), whose nodes have the bundle at the same path.",
    ),
    click.option(
        "--sandbox-level",
        type=click.Choice(LEVELS),
        default=STRONGEST,
        show_default=True,
        help="Weakest isolation that code written by a model may run in. `limits` keeps out accidents "
        "only: for containers and virtual machines that may be lost.",
    ),
    click.option("--num-draft-tokens", type=int, help="Draft tokens per round."),
    click.option("--max-tokens", type=int, help="Longest answer, in tokens."),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that runs a bundle on many tasks."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


@click.group(cls=CospecGroup)
def main() -> None:
    """Measure the accuracy and the speed of a bundle."""


main.add_command(speed)


@main.command(
    name="lm-eval",
    cls=CospecCommand,
    epilog=LM_EVAL_EPILOG,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness on a bundle.

    ARGUMENTS are those of the harness's own command `lm_eval`; the model is a bundle unless --model
    names another. --model_args takes the arguments of `CospecLM`: engine_dir, mode, threshold, arbiter,
    num_draft_tokens, max_gen_toks, max_length, seed, processes, threads and cluster.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtraError("lm-eval", "eval", "Evaluating with lm-evaluation-harness")
    from .lm_eval_adapter import run_command

    run_command(arguments)


@main.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option("--tasks", required=True, help="A task file, tiny:SPLIT, or a benchmark's name.")
@click.option("--items", type=int, help="Number of items. Default: all; of tiny tasks 1000.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed that draws the items.")
@click.option(
    "--modes",
    default="target,draft,strict",
    show_default=True,
    help="Modes to compare, separated by commas; see below.",
)
@click.option("--thresholds", help="Thresholds of collab, separated by commas.")
@click.option(
    "--arbiter",
    "arbiters",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An arbiter instead of the bundle's own: a graph, or a folder of cospec-calibrate arbiter. "
    "Several make the modes collab[1], collab[2], ...",
)
@click.option(
    "--resample-control",
    is_flag=False,
    flag_value=0.7,
    type=float,
    metavar="[TEMPERATURE]",
    help="Also sample the target twice, at 0.7 by default: how many of the answers that only the draft "
    "gets right a second answer of the target would get right by chance.",
)
@run_options
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of finished answers (JSONL). A run that was stopped continues from it.",
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
    resample_control: float | None,
    processes: int | None,
    threads: int,
    cluster: str,
    sandbox_level: Isolation,
    num_draft_tokens: int | None,
    max_tokens: int | None,
    results: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare modes by accuracy and speed on the same items."""
    from ...runtime.bundle.reader import find_bundle, read_manifest
    from ..tasks.resolve import resolve_tasks
    from .measurement import measure_quality
    from .mode_runner import QualityConfig
    from .modes import parse_modes, split_names
    from .quality_report import as_text, plot_quality, require_matplotlib

    at_least("--num-draft-tokens", num_draft_tokens, 1)
    at_least("--max-tokens", max_tokens, 1)
    if plot is not None:
        require_matplotlib()  # now, and not after an hour of work
    folder = find_bundle(engine_dir)
    config = QualityConfig(
        folder,
        num_draft_tokens,
        max_tokens,
        processes=processes,
        threads=threads,
        cluster=cluster,
        sandbox_level=sandbox_level,
    )
    names = split_names(modes)
    if resample_control is not None:
        names += ["target", *(f"sample:{resample_control:g},{seed}" for seed in (1, 2))]
    own = read_manifest(folder).models.arbiter
    wanted = parse_modes(
        names,
        own_threshold=None if own is None else own.threshold,
        thresholds=_numbers("--thresholds", thresholds),
        graphs=arbiters,
    )
    result = measure_quality(config, resolve_tasks(tasks, items=items, seed=seed), wanted, results)
    result["environment"] |= {"tasks": tasks, "seed": seed}
    if plot is not None:
        plot_quality(result, plot)
    if as_json:
        print_json(result)
    else:
        click.echo(as_text(result))


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
