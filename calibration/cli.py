"""cospec-calibrate: fit an arbiter, a draft vocabulary or weight formats to data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..errors import MissingExtraError, UsageError
from ..runtime.cli.common import (
    CospecCommand,
    CospecGroup,
    at_least,
    engine_dir_option,
    json_option,
    print_json,
)
from .draft_vocabulary.cli import draft_vocabulary
from .quality.cli import run_options
from .tasks.isolation import Isolation

EPILOG = """
\b
Examples:
  cospec-calibrate arbiter --engine-dir models/tiny --tasks tiny:train \\
    --validation tiny:validation --processes 2
  cospec-calibrate arbiter --engine-dir bundles/mine --tasks gsm8k:train.jsonl --items 3000
"""

CERTIFY_EPILOG = """
\b
Example:
  cospec-calibrate certify --engine-dir models/tiny --arbiter models/tiny_pair/arbiter \\
    --tasks tiny:validation --items 300
"""

WEIGHTS_EPILOG = """
\b
Examples:
  cospec-calibrate weights --engine-dir models/tiny --output models/tiny-fast \\
    --tasks tiny:validation
  cospec-calibrate weights --engine-dir bundles/mine --output bundles/mine-int8 --texts book.txt \\
    --target-format int8 --draft-format int4 --max-perplexity-increase 3%

\b
Formats:
  fp32           as exported
  fp16           half the size, computed in fp32
  int8           int8 weights and activations, a scale for all activations of a pass
  int8-rows      the same with a scale for each row of a pass
  int8-weights   int8 weights in blocks of 128
  int4           int4 weights in blocks of 32
  int4-128       int4 weights in blocks of 128: smaller and faster, and further from fp32
"""

WEIGHT_FORMATS = "fp32,fp16,int8,int8-rows,int8-weights,int4,int4-128"

FEATURES = ("a", "hidden")


@click.group(cls=CospecGroup)
def main() -> None:
    """Fit an arbiter, a draft vocabulary or weight formats to data, and put them into a bundle."""


@main.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
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
    from .arbiter.calibrate import CalibrationRequest, calibrate_arbiter
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
        work=work or folder.with_name(f"{folder.name}.calibration"),
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
@engine_dir_option
@click.option("--tasks", required=True, help="Tasks that neither training nor tests have used.")
@click.option("--items", type=int, default=1000, show_default=True, help="Number of tasks.")
@click.option(
    "--arbiter",
    "folder",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the arbiter: model.onnx, and arbiter.json if it has one.",
)
@run_options
@json_option
def certify(
    engine_dir: Path,
    tasks: str,
    items: int,
    folder: Path,
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
    weights, measure the same arbiter again; no training is needed. FOLDER gets the certificate too.
    """
    from ..runtime.bundle.reader import find_bundle
    from .arbiter.calibrate import certify_arbiter, training_of
    from .quality.mode_runner import QualityConfig
    from .tasks.resolve import resolve_tasks

    at_least("--items", items, 1)
    bundle = find_bundle(engine_dir)
    known = resolve_tasks(tasks, items=items, seed=0)
    trained = training_of(folder)
    about = {
        "data": {**trained["data"], "validation": tasks, "items": len(known)},
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


@main.command(cls=CospecCommand, epilog=WEIGHTS_EPILOG)
@engine_dir_option
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The new bundle's folder."
)
@click.option("--formats", default=WEIGHT_FORMATS, show_default=True, help="Which are tried.")
@click.option("--target-format", help="The target's format, instead of the fastest.")
@click.option("--draft-format", help="The draft's format, instead of the fastest.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text to measure perplexity on. Default: the fp32 target's answers to --tasks.",
)
@click.option(
    "--text-tokens", type=int, default=4096, show_default=True, help="Tokens of it to use."
)
@click.option("--tasks", help="Tasks to measure answers on: a task file, tiny:validation, ...")
@click.option("--items", type=int, help="Tasks to use. Default: all; of tiny tasks 1000.")
@click.option(
    "--strict-prompts",
    type=int,
    default=16,
    show_default=True,
    help="Prompts on which outputs with and without drafts are compared.",
)
@click.option(
    "--max-perplexity-increase", default="1%", show_default=True, help="Allowed of the target."
)
@click.option(
    "--max-accuracy-loss",
    default="1%",
    show_default=True,
    help="Share of the tasks by which fewer answers of the target alone may be right.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is at --output already.")
@json_option
def weights(
    engine_dir: Path,
    output: Path,
    formats: str,
    target_format: str | None,
    draft_format: str | None,
    texts: Path | None,
    text_tokens: int,
    tasks: str | None,
    items: int | None,
    strict_prompts: int,
    max_perplexity_increase: str,
    max_accuracy_loss: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write the bundle with the fastest weights on this CPU that are good enough.

    Each format of the target is held against fp32: perplexity, agreement and right answers. Those
    within the limits are timed with formats of the draft, taking turns. What was measured goes into
    the new bundle's certificate; the fp32 bundle stays as it is.
    """
    if find_spec("onnx_ir") is None:
        raise MissingExtraError("onnx-ir", "calibrate", "Converting weights")
    from .weights.formats import parse_format
    from .weights.request import Limits, WeightsRequest
    from .weights.selection import choose_weights
    from .weights.weights_report import as_text

    at_least("--items", items, 1)
    at_least("--text-tokens", text_tokens, 2)
    at_least("--strict-prompts", strict_prompts, 1)
    request = WeightsRequest(
        bundle=engine_dir,
        output=output,
        formats=tuple(parse_format(name.strip()) for name in formats.split(",")),
        limits=Limits(
            _share("--max-perplexity-increase", max_perplexity_increase),
            _share("--max-accuracy-loss", max_accuracy_loss),
        ),
        texts=texts,
        tasks=tasks,
        items=items,
        text_tokens=text_tokens,
        strict_prompts=strict_prompts,
        target_format=None if target_format is None else parse_format(target_format),
        draft_format=None if draft_format is None else parse_format(draft_format),
        force=force,
    )
    facts = choose_weights(request, _progress)
    if as_json:
        print_json(facts)
    else:
        click.echo(as_text(facts))


main.add_command(draft_vocabulary)


def _share(option: str, text: str) -> float:
    """Parse `1%` or `0.01`.

    Raises:
        UsageError: it is neither, or negative.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):  # NaN fails too
        raise UsageError(f"{option}: '{text}' is not a share such as 1% or 0.01")
    return value


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
