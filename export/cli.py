"""cospec-export: export checkpoints to a bundle."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import MissingExtraError, UsageError
from ..runtime.bundle.reader import Bundle, find_bundle
from ..runtime.cli.common import CospecCommand, json_option, print_json, share
from ..runtime.tensorrt.build_progress import build_bars

if TYPE_CHECKING:
    from .tensorrt_export import EngineExport

EPILOG = """
\b
Examples:
  cospec-export --target tiny
  cospec-export --target llama-8b --draft llama-1b --precision fp16
  cospec-export --target ./my-checkpoint --draft ./my-draft --output bundles/mine
  cospec-export --target ./model.gguf --draft none --weights exact
  cospec-export --target qwen2.5-0.5b --adapter ./my-lora --output bundles/tuned
  cospec-export --target llama-8b --trt --device agx-orin-jp6
  cospec-export --build-only models/llama-8b
  cospec-export --output bundles/mine --push org/name
"""

TARGET_HELP = "Preset, Hugging Face folder, hub id (org/name) or GGUF file."
draft_option = click.option(
    "--draft",
    metavar="NAME",
    help="The draft, named like the target, or 'none'. Default: the preset's own draft, if any.",
)
capacity_option = click.option(
    "--capacity",
    type=int,
    help="Tokens of context, prompt and output together. Default: 2048, or the models' limit.",
)


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option("--target", metavar="NAME", help=TARGET_HELP)
@draft_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=True),
    help="Folder of the bundle. Default: models/NAME.",
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
    "--weights",
    type=click.Choice(["keep", "exact", "fast", "fp32", "fp16", "int8", "int4", "fp8", "auto"]),
    help="How weights are stored. keep (default): the target's quantised weights stay in their own "
    "numbers, those of 5 and 6 bits within 0.4%; the draft's are rounded to 4 bits; plain numbers are "
    "stored as --precision says. exact: all quantised weights stay in their own numbers. fast: the "
    "target's 4-bit weights take 8 bits, which needs more disk and less time. fp32, fp16: all "
    "weights become plain numbers. int8, int4: plain numbers are quantised; int4 stores as many "
    "matrices in 8 bits as the limit asks for. auto: int4 for ONNX Runtime on a CPU, with fp16 beyond "
    "the limit; quantised checkpoints are kept. fp8: with --trt. There, auto is the default and takes "
    "the widest that fit the device.",
)
@click.option(
    "--draft-weights",
    type=click.Choice(["keep", "exact", "fp32", "fp16", "int8", "int4", "auto"]),
    help="The same of the draft alone. Default: as --weights says.",
)
@click.option(
    "--max-perplexity-increase",
    "limit",
    default="5%",
    show_default=True,
    callback=share,
    help="With int8, int4 and auto for ONNX Runtime: allowed increase of the target's perplexity.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With int8, int4 and auto: UTF-8 text to measure perplexity on. Default: 1,300 words "
    "that CoSpec brings.",
)
@capacity_option
@click.option(
    "--num-draft-tokens", type=int, help="Default number of draft tokens per round.  [default: 3]"
)
@click.option(
    "--arbiter",
    metavar="DIR",
    help="Folder of an arbiter for this pair (model.onnx, arbiter.json), or 'none'. Default: the "
    "preset's own, if any.",
)
@click.option(
    "--adapter",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter to merge into the target.",
)
@click.option(
    "--draft-adapter",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of a LoRA adapter to merge into the draft.",
)
@click.option(
    "--no-chat-template",
    is_flag=True,
    help="Leave the checkpoint's chat template out: the bundle then takes plain text only.",
)
@click.option(
    "--trt", is_flag=True, help="Export for TensorRT, and build the engines if this machine can."
)
@click.option(
    "--device",
    metavar="NAME",
    help="Device of the engines, with --trt or --build-only: agx-orin-jp6, thor-jp7.2, rtx-4090 and "
    "others; an unknown name lists all. Default: this machine.",
)
@click.option(
    "--build-only",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Build the engines of the existing bundle DIR; export nothing.",
)
@click.option(
    "--push",
    metavar="ORG/NAME",
    help="Upload the bundle and a model card to this repository of the Hugging Face hub; a new one is "
    "private. Without --target: upload the existing bundle at --output.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@json_option
def main(
    target: str | None,
    draft: str | None,
    output: Path | None,
    lowering: str | None,
    precision: str | None,
    weights: str | None,
    draft_weights: str | None,
    limit: float,
    texts: Path | None,
    capacity: int | None,
    num_draft_tokens: int | None,
    arbiter: str | None,
    adapter: Path | None,
    draft_adapter: Path | None,
    no_chat_template: bool,
    trt: bool,
    device: str | None,
    build_only: Path | None,
    push: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export a draft and a target model to one sealed bundle of ONNX graphs.

    Every graph, and the prompts that the runtime makes, are compared with the checkpoint before the
    bundle gets its name; if one differs, nothing is left behind. With --trt, TensorRT reads every
    graph too, and must read it as meant.
    """
    from .publish import push_bundle

    if push is not None and _push_existing(push, None if target else output, as_json=as_json):
        return
    try:
        from .pair import DEFAULT_NUM_DRAFT_TOKENS, ExportOptions
        from .pipeline import Steps, export_bundle, stages
        from .weights.chosen_weights import QualityLimit
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "cospec-export") from error

    if build_only is not None:
        _refuse_what_is_for_exports(click.get_current_context())
        _build(build_only, device, as_json=as_json)
        return
    if target is None:
        raise click.MissingParameter(param_hint="--target", param_type="option")
    _refuse_what_is_for_others(trt, device, weights, draft_weights)
    engines = _engines(device, lowering, precision, weights, as_json=as_json) if trt else None
    options = ExportOptions(
        target=target,
        draft=draft,
        lowering=lowering or "gqa",  # type: ignore[arg-type]
        precision=precision or ("fp16" if trt else "fp32"),  # type: ignore[arg-type]
        capacity=capacity,
        num_draft_tokens=(
            DEFAULT_NUM_DRAFT_TOKENS if num_draft_tokens is None else num_draft_tokens
        ),
        force=force,
        arbiter=arbiter,
        adapter=adapter,
        draft_adapter=draft_adapter,
        chat_template=not no_chat_template,
        weights="keep" if trt else weights or "keep",  # type: ignore[arg-type]
        limit=QualityLimit(limit, texts),
        draft_weights=draft_weights,  # type: ignore[arg-type]
    )
    started = time.monotonic()
    output = output or _default_output(target)
    with Steps(stages(options, engines=trt)) as steps:
        bundle = export_bundle(options, output, steps.begin, engines)
    seconds = time.monotonic() - started
    if as_json:
        result: dict[str, Any] = {"bundle": str(bundle), "seconds": round(seconds, 3)}
        if engines is not None:
            result["engines"] = engines.to_json()
        if push is not None:
            result["pushed"] = push_bundle(bundle, push)
        print_json(result)
        return
    click.echo(
        f"{output} written in {seconds:.0f} s; graphs and prompts agree with the checkpoint."
    )
    for line in _left_out(bundle):
        click.echo(line)
    for line in engines.summary(output) if engines else ():
        click.echo(line)
    if push is not None:
        click.echo(f"Pushed: {push_bundle(bundle, push)}")
    click.echo(f'Try it:  {shlex.join(["cospec-run", "--engine-dir", str(output)])} "your prompt"')


def _left_out(bundle: Path) -> list[str]:
    """Describe the tokens that the draft never proposes, as far as they fit a few lines."""
    draft = Bundle.open(bundle, verify=False).manifest.models.draft
    if draft is None or not draft.unshared:
        return []
    few, count = draft.unshared[:5], f"{len(draft.unshared)}"
    more = ["  ... (cospec-inspect lists more)"] if len(draft.unshared) > len(few) else []
    title = f"Draft and target differ in {count} tokens, which the draft never proposes:"
    return [title, *(f"  {token}" for token in few), *more]


def _engines(
    device: str | None,
    lowering: str | None,
    precision: str | None,
    weights: str | None,
    *,
    as_json: bool,
) -> EngineExport:
    """Choose the device, and check form, precision and weights against it."""
    from .tensorrt_choice import check_form, check_weights, choose_device
    from .tensorrt_export import EngineExport

    chosen, note = choose_device(device)
    check_form(chosen, lowering or chosen.lowering, precision or "fp16")
    # Kept numbers are exact for TensorRT wherever it can read them.
    weights = "keep" if weights == "exact" else weights or "auto"
    check_weights(chosen, weights)
    if note:
        click.echo(f"note: {note}.", err=True)

    def announce(lines: list[str]) -> None:
        if not as_json:
            click.echo("\n".join(lines))

    return EngineExport(chosen, announce, lowering, weights)  # type: ignore[arg-type]


def _refuse_what_is_for_others(
    trt: bool, device: str | None, weights: str | None, draft_weights: str | None
) -> None:
    """Refuse options that an export for this backend would ignore."""
    if trt and draft_weights is not None:
        raise UsageError("--draft-weights is for ONNX Runtime", hint="leave --trt out")
    if trt:
        return
    for option, given in (("--device", device is not None), ("--weights fp8", weights == "fp8")):
        if given:
            raise UsageError(f"{option} is for TensorRT", hint="add --trt")


def _refuse_what_is_for_exports(context: click.Context) -> None:
    """Refuse options that `--build-only` would ignore.

    Raises:
        UsageError: names them.
    """
    looked_at = {"build_only", "device", "as_json"}
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in looked_at
        and context.get_parameter_source(str(parameter.name)) == ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError("--build-only exports nothing", hint=f"leave {', '.join(given)} out")


def _build(folder: Path, device: str | None, *, as_json: bool) -> None:
    """Build the engines of an existing bundle."""
    from ..runtime.tensorrt.devices import resolve_device
    from .build_only import build_bundle

    started = time.monotonic()
    bundle = Bundle.open(find_bundle(folder))
    chosen = resolve_device(device) if device else None
    with build_bars() as begin:
        built, sm = build_bundle(bundle, chosen, begin)
    seconds = time.monotonic() - started
    if as_json:
        print_json({"bundle": str(bundle.root), "seconds": round(seconds, 3), "built": built})
        return
    if built:
        click.echo(f"Engines for SM {sm} built in {seconds:.0f} s: {', '.join(built)}.")
    else:
        click.echo(f"All engines for SM {sm} exist already.")


def _push_existing(repository: str, folder: Path | None, *, as_json: bool) -> bool:
    """Check the name of the repository, and upload the bundle of a folder if one is given.

    Returns:
        Whether it was uploaded, so that there is nothing to export.
    """
    from .publish import check_repository, push_bundle

    check_repository(repository)
    if folder is None:
        return False
    commit = push_bundle(find_bundle(folder), repository)
    if as_json:
        print_json({"pushed": commit})
    else:
        click.echo(f"Pushed: {commit}\nRun it:  cospec-run --engine-dir hf://{repository}")
    return True


def _default_output(target: str) -> Path:
    """Return models/NAME, where NAME is the last part of the target, without .gguf."""
    path = Path(target)
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return Path("models") / re.sub(r"(?i)\.gguf$", "", name)
