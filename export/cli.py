"""cospec-export: from checkpoints to a bundle."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli.common import CospecCommand, json_option, print_json
from ..runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from .pipeline import ExportOptions

EPILOG = """
\b
Examples:
  cospec-export --target tiny
  cospec-export --target llama-8b --draft llama-1b --precision fp16
  cospec-export --target ./my-checkpoint --draft ./my-draft --output bundles/mine
  cospec-export --target ./model.gguf --draft none
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option(
    "--target",
    required=True,
    metavar="NAME",
    help="Preset, Hugging Face folder, hub id (org/name) or GGUF file.",
)
@click.option(
    "--draft",
    metavar="NAME",
    help="The same for the draft, or 'none'. Default: the preset's own draft, if it has one.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=True),
    help="The bundle's folder. Default: models/NAME.",
)
@click.option(
    "--lowering",
    type=click.Choice(["gqa", "scatter", "portable"]),
    help="Form of the attention block: gqa for ONNX Runtime (default), scatter for TensorRT 10.15 "
    "and newer (default with --trt), portable for older TensorRT and any ONNX Runtime.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    help="Precision of weights and cache. Default: fp32; fp16 with --trt.",
)
@click.option(
    "--capacity",
    type=int,
    help="Tokens of context, prompt and output together. Default: 2048, or the models' limit.",
)
@click.option("--num-draft-tokens", type=int, help="Tokens to draft a round.  [default: 3]")
@click.option(
    "--arbiter",
    metavar="DIR",
    help="Folder of an arbiter for this pair (model.onnx, arbiter.json), or 'none'. Default: the "
    "preset's own, if it has one.",
)
@click.option("--trt", is_flag=True, help="Export graphs for TensorRT.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there already.")
@json_option
def main(
    target: str,
    draft: str | None,
    output: Path | None,
    lowering: str | None,
    precision: str | None,
    capacity: int | None,
    num_draft_tokens: int | None,
    arbiter: str | None,
    trt: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export a draft and a target model to one sealed bundle of ONNX graphs.

    Every graph is compared with its checkpoint before the bundle gets its name; if one differs,
    nothing is left behind.
    """
    try:
        from .pipeline import DEFAULT_NUM_DRAFT_TOKENS, ExportOptions, export_bundle
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "cospec-export") from error

    options = ExportOptions(
        target=target,
        draft=draft,
        lowering=lowering or ("scatter" if trt else "gqa"),  # type: ignore[arg-type]
        precision=precision or ("fp16" if trt else "fp32"),  # type: ignore[arg-type]
        capacity=capacity,
        num_draft_tokens=(
            DEFAULT_NUM_DRAFT_TOKENS if num_draft_tokens is None else num_draft_tokens
        ),
        force=force,
        arbiter=arbiter,
    )
    started = time.monotonic()
    output = output or _default_output(target)
    with _StageBar(options) as bar:
        bundle = export_bundle(options, output, bar.begin)
    seconds = time.monotonic() - started
    engines = (
        "not built: this version writes the TensorRT-ready graphs and builds no engines yet"
        if trt
        else None
    )
    if as_json:
        result: dict[str, Any] = {"bundle": str(bundle), "seconds": round(seconds, 3)}
        if trt:
            result["engines"] = engines
        print_json(result)
        return
    click.echo(f"{output} written in {seconds:.0f} s; every graph agrees with its checkpoint.")
    if engines:
        click.echo(f"TensorRT engines: {engines}.")
    click.echo(f'Try it:  cospec-run --engine-dir {output} "your prompt"')


def _default_output(target: str) -> Path:
    """models/NAME, where NAME is the last part of what was named, without .gguf."""
    path = Path(target)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return Path("models") / re.sub(r"(?i)\.gguf$", "", name)


class _StageBar:
    """A progress bar over the stages of an export; silent when stderr is not a terminal."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._bar: Any = None

    def __enter__(self) -> _StageBar:
        return self

    def begin(self, stage: str) -> None:
        """Show `stage` as the one at work."""
        if self._bar is None:
            from tqdm import tqdm

            from .pipeline import stages

            self._bar = tqdm(
                total=stages(self._options),
                disable=not sys.stderr.isatty(),
                bar_format="{desc:<32} {bar} {n}/{total} [{elapsed}]",
            )
        else:
            self._bar.update()
        self._bar.set_description_str(stage)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._bar is not None:
            if error is None:
                self._bar.update()
            self._bar.close()
