"""cospec-calibrate: fit an arbiter, a draft vocabulary or weight formats to data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import (
    CospecCommand,
    CospecGroup,
    at_least,
    json_option,
    local_engine_dir_option,
    print_json,
)
from .draft_vocabulary.cli import draft_vocabulary
from .quality.cli import run_options
from .tasks.isolation import Isolation
from .weights.cli import weights

EPILOG = """
\b
Examples:
  cospec-calibrate arbiter --engine-dir models/tiny --tasks tiny:train \\
    --validation tiny:validation --processes 2
  cospec-calibrate arbiter --engine-dir bundles/mine --tasks gsm8k:train.jsonl --items 3000
"""

CERTIFY_EPILOG = """
\b
Examples:
  cospec-calibrate certify --engine-dir models/tiny --arbiter models/tiny_pair/arbiter \\
    --tasks tiny:validation --items 300
  cospec-calibrate certify --engine-dir bundles/mine --arbiter ensemble --tasks gsm8k:train.jsonl
"""

ENSEMBLE = "ensemble"

FEATURES = ("a", "hidden")


class ArbiterPath(click.Path):
    """The folder of an arbiter, or ENSEMBLE."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the folder's path, or ENSEMBLE."""
        return value if value == ENSEMBLE else super().convert(value, param, ctx)


@click.group(cls=CospecGroup)
def main() -> None:
    """Fit an arbiter, a draft vocabulary or weight formats to data, and put them into a bundle."""


@main.command(cls=CospecCommand, epilog=EPILOG)
@local_engine_dir_option
@click.option("--tasks", required=True, help="Training tasks: a task file, tiny:train, ...")
@click.option(
    "--validation",
    help="Tasks that choose the threshold and certify. Default: a fifth of --tasks, held out.",
)
@click.option(
    "--items", type=int, help="Number of training tasks. Default: all; of tiny tasks 4000."
)
@click.option(
    "--validation-items",
    type=int,
    default=1000,
    show_default=True,
    help="Number of validation tasks.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training.")
@click.option(
    "--features",
    type=click.Choice(FEATURES),
    default="a",
    show_default=True,
    help="Inputs of the network; hidden adds both models' last hidden states.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A hyper-parameter, such as steps=10 or learning_rate=1e-3; may be repeated.",
)
@run_options
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for journals, weights and the log. Default: BUNDLE.calibration, beside the "
    "bundle. A job that was stopped continues from it.",
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
    processes: int | None,
    threads: int,
    cluster: str,
    sandbox_level: Isolation,
    num_draft_tokens: int | None,
    max_tokens: int | None,
    work: Path | None,
    as_json: bool,
) -> None:
    """Train an arbiter on tasks with known answers and install it in the bundle.

    The bundle's own engines answer the tasks. The threshold is chosen on held-out tasks from the whole
    curve of quality and speed, which becomes part of the bundle's certificate.
    """
    from ..runtime.bundle.reader import find_bundle
    from .arbiter.calibrate import CalibrationRequest, calibrate_arbiter, work_folder
    from .arbiter.config import TrainingConfig, with_settings

    at_least("--validation-items", validation_items, 1)
    folder = find_bundle(engine_dir)
    config = TrainingConfig(
        features=features,  # type: ignore[arg-type]
        seed=seed,
        num_draft_tokens=num_draft_tokens,
        max_tokens=max_tokens,
    )
    request = CalibrationRequest(
        bundle=folder,
        tasks=tasks,
        validation=validation,
        items=items,
        validation_items=validation_items,
        work=work or work_folder(folder),
        processes=processes,
        threads=threads,
        cluster=cluster,
        sandbox_level=sandbox_level,
    )
    result = calibrate_arbiter(request, with_settings(config, settings), _progress)
    if as_json:
        print_json(result)
        return
    click.echo(_summary(folder, result))


@main.command(cls=CospecCommand, epilog=CERTIFY_EPILOG)
@local_engine_dir_option
@click.option("--tasks", required=True, help="Tasks that neither training nor tests have used.")
@click.option("--items", type=int, default=1000, show_default=True, help="Number of tasks.")
@click.option(
    "--arbiter",
    required=True,
    type=ArbiterPath(path_type=Path, exists=True, file_okay=False),
    metavar=f"FOLDER|{ENSEMBLE}",
    help="Folder of the arbiter: model.onnx, and arbiter.json if it has one. ensemble: the mean of "
    "both models' probabilities decides, without training.",
)
@run_options
@json_option
def certify(
    engine_dir: Path,
    tasks: str,
    items: int,
    arbiter: Path | str,
    processes: int | None,
    threads: int,
    cluster: str,
    sandbox_level: Isolation,
    num_draft_tokens: int | None,
    max_tokens: int | None,
    as_json: bool,
) -> None:
    """Measure an arbiter on this bundle, choose its threshold and install both.

    A certificate is valid only for the files that it was measured on. After a new export, or with other
    weights, measure the same arbiter again; no training is needed. FOLDER gets the certificate too. The
    folder of `ensemble` is made in BUNDLE.calibration, beside the bundle.
    """
    from ..runtime.bundle.reader import find_bundle
    from .arbiter.calibrate import certify_arbiter, ensemble_folder, training_of
    from .quality.mode_runner import QualityConfig
    from .tasks.resolve import label_of, resolve_tasks

    at_least("--items", items, 1)
    bundle = find_bundle(engine_dir)
    known = resolve_tasks(tasks, items=items, seed=0)
    folder = ensemble_folder(bundle) if isinstance(arbiter, str) else arbiter
    trained = training_of(folder)
    about = {
        "data": {**trained["data"], "validation": label_of(tasks), "items": len(known)},
        "training": trained["training"],
    }
    config = QualityConfig(
        bundle,
        num_draft_tokens,
        max_tokens,
        processes=processes,
        threads=threads,
        cluster=cluster,
        sandbox_level=sandbox_level,
    )
    result = certify_arbiter(folder, known, config, folder / "curve.jsonl", about)
    (folder / "curve.jsonl").unlink()  # a journal is useful only while it is incomplete
    if as_json:
        print_json(result)
        return
    click.echo(_summary(bundle, result))


main.add_command(draft_vocabulary)
main.add_command(weights)


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _summary(folder: Path, result: dict[str, Any]) -> str:
    modes = result["modes"]
    lines = [f"{folder} now has an arbiter, threshold {result['threshold']}."]
    for name in ("target", "strict", "collab", "draft"):
        figures = modes[name]
        low, high = figures["accuracy_ci95"]
        lines.append(
            f"  {name:<7} right {figures['accuracy']:.1%} ({low:.1%} to {high:.1%}), "
            f"{figures['tokens_per_target_pass']:.2f} tokens per pass"
        )
    fast = result["speed_first"]
    if fast is None:
        lines.append("  no threshold is faster without a risk of losing to the target")
    else:
        lines.append(
            f"  speed first, threshold {fast['threshold']}: right {fast['accuracy']:.1%}, "
            f"{fast['tokens_per_target_pass']:.2f} tokens per pass"
        )
    return "\n".join(lines)
