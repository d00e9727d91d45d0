"""cospec-calibrate: what is fitted from data and put into a bundle."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import (
    CospecCommand,
    CospecGroup,
    at_least,
    engine_dir_option,
    json_option,
    print_json,
)
from ..runtime.errors import MissingExtraError

EPILOG = """
\b
Examples:
  cospec-calibrate arbiter --engine-dir models/tiny --tasks tiny:train \\
    --validation tiny:validation --processes 2
  cospec-calibrate arbiter --engine-dir bundles/mine --tasks gsm8k:train.jsonl --items 3000
"""

FEATURES = ("a", "hidden")


@click.group(cls=CospecGroup)
def main() -> None:
    """Fit what a bundle needs from data."""


@main.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option("--tasks", required=True, help="Training tasks: a task file, tiny:train, ...")
@click.option(
    "--validation",
    help="Tasks that choose the threshold and certify. Default: a fifth of --tasks, held out.",
)
@click.option("--items", type=int, help="Training tasks to use. Default: all; of tiny tasks 4000.")
@click.option("--validation-items", type=int, default=1000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--features", type=click.Choice(FEATURES), default="a", show_default=True)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A hyper-parameter, such as steps=10 or learning_rate=1e-3; may be repeated.",
)
@click.option("--processes", type=int, default=1, show_default=True, help="One thread each.")
@click.option("--num-draft-tokens", type=int, help="Tokens to draft a round.")
@click.option("--max-tokens", type=int, help="Tokens that an answer may take.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for journals, weights and the log. Default: BUNDLE.calibration, beside the "
    "bundle. A job that was stopped goes on from it.",
)
@json_option
def arbiter(
    engine_dir: Path,
    tasks: str,
    validation: str | None,
    items: int | None,
    validation_items: int,
    seed: int,
    features: str,
    settings: tuple[str, ...],
    processes: int,
    num_draft_tokens: int | None,
    max_tokens: int | None,
    work: Path | None,
    as_json: bool,
) -> None:
    """Train an arbiter on tasks with known answers and put it into the bundle.

    The bundle's own engines play; the threshold is chosen on held-out tasks from the whole curve of
    quality and speed, which goes into the bundle's certificate.
    """
    for package in ("torch", "matplotlib"):  # asked for now, not after the rollouts
        if find_spec(package) is None:
            raise MissingExtraError(package, "calibrate", "Training an arbiter")
    from ..runtime.bundle import find_bundle
    from .arbiter import CalibrationRequest, calibrate_arbiter
    from .config import TrainingConfig, with_settings

    at_least("--processes", processes, 1)
    at_least("--validation-items", validation_items, 1)
    folder = find_bundle(engine_dir)
    config = TrainingConfig(
        features=features,  # type: ignore[arg-type]
        seed=seed,
        num_draft_tokens=num_draft_tokens,
        max_tokens=max_tokens,
    )
    config = with_settings(config, settings)
    request = CalibrationRequest(
        bundle=folder,
        tasks=tasks,
        validation=validation,
        items=items,
        validation_items=validation_items,
        work=work or folder.with_name(f"{folder.name}.calibration"),
        processes=processes,
    )
    result = calibrate_arbiter(request, config, _say)
    if as_json:
        print_json(result)
        return
    click.echo(_summary(folder, result))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _summary(folder: Path, result: dict[str, Any]) -> str:
    modes = result["modes"]
    lines = [f"{folder} now has an arbiter, threshold {result['threshold']}."]
    for name in ("target", "strict", "collab", "draft"):
        figures = modes[name]
        low, high = figures["accuracy_ci95"]
        lines.append(
            f"  {name:<7} right {figures['accuracy']:.1%} ({low:.1%} to {high:.1%}), "
            f"{figures['tokens_per_target_pass']:.2f} tokens a pass"
        )
    fast = result["speed_first"]
    if fast is None:
        lines.append("  no threshold is faster without the risk of losing to the target")
    else:
        lines.append(
            f"  speed first, threshold {fast['threshold']}: right {fast['accuracy']:.1%}, "
            f"{fast['tokens_per_target_pass']:.2f} tokens a pass"
        )
    return "\n".join(lines)
