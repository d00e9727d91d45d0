"""cospec-calibrate draft-vocabulary: a draft that proposes frequent tokens only."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ...errors import MissingExtraError
from ...runtime.bundle.files import format_bytes
from ...runtime.cli.common import (
    CospecCommand,
    at_least,
    engine_dir_option,
    json_option,
    new_bundle_options,
    print_json,
)
from ..tables import text_table

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
@new_bundle_options
@click.option(
    "--size", required=True, type=int, help="Number of tokens that the draft can propose."
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="UTF-8 text whose tokens are counted; best is text like the target's answers.",
)
@click.option(
    "--text-tokens",
    type=int,
    default=1_000_000,
    show_default=True,
    help="Longest part of --texts, and of the answers, in tokens.",
)
@click.option("--tasks", help="Tasks whose answers by the target are counted: a task file, ...")
@click.option("--items", type=int, help="Number of tasks. Default: all; of tiny tasks 1000.")
@click.option(
    "--prompts",
    type=int,
    default=8,
    show_default=True,
    help="Number of texts to measure on, from the fifth that is not counted.",
)
@json_option
def draft_vocabulary(
    engine_dir: Path,
    size: int,
    texts: Path | None,
    text_tokens: int,
    tasks: str | None,
    items: int | None,
    prompts: int,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write the bundle with a draft that proposes its most frequent tokens only.

    The draft's head then computes only their logits: each step is faster, and a few guesses become
    impossible. Without --texts and --tasks the tokens of lowest id are kept: most tokenizers number
    them by frequency. Strict output is still the target's own. Quantised drafts keep their numbers.
    """
    if find_spec("onnx_ir") is None:
        raise MissingExtraError("onnx-ir", "calibrate", "Trimming a draft")
    from .trimming import TrimRequest, trim_draft

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


def as_text(facts: dict[str, Any]) -> str:
    """Return the figures before and after, from `trim_draft`, as text for people."""
    share, data = facts["coverage"], facts["data"]
    held_out = f"{share['held_out']:.2%} of {data['held_out_tokens']} held out"
    counted = "the lowest ids"
    if share["counted"] is not None:
        counted = f"{share['counted']:.2%} of the {data['counted_tokens']} counted"
    rows = [("", "before", "after")]
    for label, key, shown in (
        ("draft's files", "draft_bytes", format_bytes),
        ("head's weights", "head_weights", lambda count: f"{count / 1e6:.1f}M"),
        ("draft step", "draft_step_seconds", lambda seconds: f"{seconds * 1000:.2f} ms"),
        ("accepted", "acceptance", lambda part: "-" if part is None else f"{part:.1%}"),
        ("tokens/s", "tokens_per_second", lambda rate: f"{rate:.1f}"),
    ):
        rows.append((label, shown(facts["before"][key]), shown(facts["after"][key])))
    return "\n".join(
        [
            f"{facts['kept_tokens']} of {facts['vocab_size']} tokens kept: {counted}, {held_out}",
            *text_table(rows),
        ]
    )
