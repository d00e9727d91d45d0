"""cospec-calibrate weights: a bundle with the fastest weights that are good enough."""

from __future__ import annotations

from pathlib import Path

import click

from ...errors import MissingExtraError
from ...export.cli import TARGET_HELP, capacity_option, draft_option
from ...runtime.cli.common import (
    CospecCommand,
    at_least,
    json_option,
    new_bundle_options,
    print_json,
    share,
)

EPILOG = """
\b
Examples:
  cospec-calibrate weights --target tiny --output models/tiny-fast --tasks tiny:validation
  cospec-calibrate weights --target target.gguf --draft draft.gguf --output models/pair
  cospec-calibrate weights --target ./checkpoint --draft none --output models/mine \\
    --formats int8,int4 --texts book.txt --max-perplexity-increase 2%

\b
Formats, as of cospec-export --weights:
  keep, exact, fast   of checkpoints that are quantised
  fp16, int8, int4    of checkpoints in full precision
  fp32                plain numbers, tried only when it is named
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option("--target", required=True, metavar="NAME", help=TARGET_HELP)
@draft_option
@new_bundle_options
@click.option(
    "--formats",
    metavar="LIST",
    help="Formats of the target to try. Default: all that its checkpoint can take but fp32.",
)
@click.option("--draft-formats", metavar="LIST", help="Formats of the draft to try. Same default.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text to measure perplexity on. Default: 1,300 words that CoSpec brings.",
)
@click.option(
    "--text-tokens",
    type=int,
    help="Longest part of it, in tokens. Default: 2048, fewer from 2.5 billion weights on.",
)
@click.option("--tasks", help="Tasks to measure answers on: a task file, tiny:validation, ...")
@click.option("--items", type=int, help="Number of tasks. Default: all; of tiny tasks 1000.")
@click.option(
    "--max-perplexity-increase",
    default="5%",
    show_default=True,
    callback=share,
    help="Allowed increase of the target's perplexity over the checkpoint's.",
)
@click.option(
    "--max-accuracy-loss",
    default="1%",
    callback=share,
    show_default=True,
    help="Share of the tasks by which fewer answers may be right than in the format that agrees best "
    "with the checkpoint.",
)
@capacity_option
@json_option
def weights(
    target: str,
    draft: str | None,
    output: Path,
    formats: str | None,
    draft_formats: str | None,
    texts: Path | None,
    text_tokens: int | None,
    tasks: str | None,
    items: int | None,
    max_perplexity_increase: float,
    max_accuracy_loss: float,
    capacity: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export a draft and a target in the weight formats that are fastest here and good enough.

    Exports one format at a time, measures the target's perplexity, agreement and right answers against
    its checkpoint, and times the formats within the limits, taking turns. The figures go into the
    certificate of the new bundle. A run that was stopped continues from the folder OUTPUT.work.
    """
    try:
        from .request import Limits, WeightsRequest
        from .selection import choose_weights
        from .weights_report import as_text
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "cospec-calibrate weights") from error

    at_least("--items", items, 1)
    at_least("--text-tokens", text_tokens, 2)
    facts = choose_weights(
        WeightsRequest(
            target=target,
            draft=draft,
            output=output,
            limits=Limits(max_perplexity_increase, max_accuracy_loss),
            formats=formats,
            draft_formats=draft_formats,
            texts=texts,
            text_tokens=text_tokens,
            tasks=tasks,
            items=items,
            capacity=capacity,
            force=force,
        )
    )
    if as_json:
        print_json(facts)
    else:
        click.echo(as_text(facts))
