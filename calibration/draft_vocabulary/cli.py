"""cospec-calibrate draft-vocabulary: a draft that proposes frequent tokens only."""

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
    print_json,
)

EPILOG = """
\b
Examples:
  cospec-calibrate draft-vocabulary --engine-dir bundles/mine --output bundles/mine-16k \\
    --size 16384 --texts corpus.txt
  cospec-calibrate draft-vocabulary --engine-dir models/tiny --output models/tiny-128 \\
    --size 128 --tasks tiny:train --items 200
"""


@click.command(name="draft-vocabulary", cls=CospecCommand, epilog=EPILOG)
@engine_dir_option
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The new bundle's folder."
)
@click.option("--size", required=True, type=int, help="Tokens that the draft may propose.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text whose tokens are counted, like what the target will write.",
)
@click.option("--tasks", help="Tasks whose answers by the target are counted: a task file, ...")
@click.option("--items", type=int, help="Tasks to use. Default: all; of tiny tasks 1000.")
@click.option(
    "--text-tokens",
    type=int,
    default=1_000_000,
    show_default=True,
    help="Tokens to use at most, of --texts and of answers.",
)
@click.option(
    "--prompts",
    type=int,
    default=8,
    show_default=True,
    help="Texts to measure on, of the fifth that is not counted.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is at --output already.")
@json_option
def draft_vocabulary(
    engine_dir: Path,
    output: Path,
    size: int,
    texts: Path | None,
    tasks: str | None,
    items: int | None,
    text_tokens: int,
    prompts: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write the bundle with a draft that proposes its most frequent tokens only.

    The draft's head then computes the logits of no others, which makes each of its steps faster and a
    few of its guesses impossible. Strict output stays the target's own. Convert the new bundle with
    `cospec-calibrate weights` where other weights are wanted too: this command comes first.
    """
    if find_spec("onnx_ir") is None:
        raise MissingExtraError("onnx-ir", "calibrate", "Trimming a draft")
    from .trimming import TrimRequest, trim_draft
    from .trimming_report import as_text

    at_least("--size", size, 1)
    at_least("--items", items, 1)
    at_least("--text-tokens", text_tokens, 2)
    at_least("--prompts", prompts, 1)
    request = TrimRequest(
        bundle=engine_dir,
        output=output,
        size=size,
        texts=texts,
        tasks=tasks,
        items=items,
        text_tokens=text_tokens,
        prompts=prompts,
        force=force,
    )
    facts = trim_draft(request, partial(click.echo, err=True))
    if as_json:
        print_json(facts)
    else:
        click.echo(as_text(facts))
