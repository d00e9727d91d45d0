"""cospec-calibrate weights: a bundle with the fastest weights that are good enough."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click

from ...errors import MissingExtraError
from ...runtime.cli.common import (
    CospecCommand,
    at_least,
    engine_dir_option,
    json_option,
    new_bundle_options,
    print_json,
    share,
)

EPILOG = """
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


@click.command(cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@new_bundle_options
@click.option("--formats", default=WEIGHT_FORMATS, show_default=True, help="Which are tried.")
@click.option("--target-format", help="The target's format, instead of the fastest.")
@click.option("--draft-format", help="The draft's format, instead of the fastest.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text to measure perplexity on. Default: the fp32 target's answers to --tasks; without "
    "tasks, 1,300 words that CoSpec brings.",
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
    "--max-perplexity-increase",
    default="1%",
    show_default=True,
    callback=share,
    help="Allowed of the target.",
)
@click.option(
    "--max-accuracy-loss",
    default="1%",
    callback=share,
    show_default=True,
    help="Share of the tasks by which fewer answers of the target alone may be right.",
)
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
    max_perplexity_increase: float,
    max_accuracy_loss: float,
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
    from .formats import parse_format
    from .request import Limits, WeightsRequest
    from .selection import choose_weights
    from .weights_report import as_text

    at_least("--items", items, 1)
    at_least("--text-tokens", text_tokens, 2)
    at_least("--strict-prompts", strict_prompts, 1)
    request = WeightsRequest(
        bundle=engine_dir,
        output=output,
        formats=tuple(parse_format(name.strip()) for name in formats.split(",")),
        limits=Limits(
            max_perplexity_increase,
            max_accuracy_loss,
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
    facts = choose_weights(request, partial(click.echo, err=True))
    if as_json:
        print_json(facts)
    else:
        click.echo(as_text(facts))
