"""The commands of cospec-bench that measure and project speed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ...runtime.cli.common import CospecCommand, at_least, json_option, print_json

WORK = Path(".cache/speed")

SPEED_EPILOG = """
\b
Examples:
  cospec-bench speed --pair controlled --peers transformers,onnxruntime-genai,openvino-genai,llama.cpp
  cospec-bench speed --pair controlled --peers none --formats fp32,int8,int4 --plot speed.png
  cospec-bench speed --pair controlled --peers openvino-genai --formats fp32,fp32+int4-128
  cospec-bench speed --engine-dir models/tiny --tokens 64

\b
The controlled pair is a random Llama of 201M parameters with a draft of 19M inside; --noise sets how
often they agree. The first run writes and exports it, and makes an environment for each peer with pip:
several GB below --work, which later runs find there.


Formats, one for both models or TARGET+DRAFT (each runtime plays those that it has of both):
  fp32           all runtimes; the output is that of fp32 whatever the draft is in
  int8           by output channel, activations too; the others' own int8
  int8-rows      ours only
  int8-weights   in blocks of 128; onnxruntime-genai too
  int4           in blocks of 32; not transformers
  int4-128       in blocks of 128; onnxruntime-genai and openvino-genai too
"""

work_option = click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=WORK,
    show_default=True,
    help="Folder for pairs, bundles and environments; made once, found again.",
)
threads_option = click.option("--threads", type=int, default=2, show_default=True)
noise_option = click.option(
    "--noise",
    type=float,
    default=0.2,
    show_default=True,
    help="Of the controlled pair: 0 always agrees, 0.2 on four tokens of five, inf is unrelated.",
)


@click.command(cls=CospecCommand, epilog=SPEED_EPILOG)
@click.option("--pair", type=click.Choice(["controlled"]), help="A pair that the bench makes.")
@click.option("--engine-dir", type=click.Path(path_type=Path), help="A bundle, by itself.")
@click.option("--peers", default="none", show_default=True, help="Names, separated by commas.")
@click.option(
    "--formats",
    default="fp32",
    show_default=True,
    help="Of the weights, separated by commas: of both models, or TARGET+DRAFT. See below.",
)
@noise_option
@threads_option
@click.option("--tokens", type=int, default=128, show_default=True, help="To generate.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each row.")
@click.option(
    "--draft-lengths", help="Separated by commas, auto among them. Default: 1 to 8, and auto."
)
@click.option("--prompt", "texts", multiple=True, help="For --engine-dir; several take turns.")
@work_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Measure ours at several noises too, and draw speed against acceptance.",
)
@json_option
def speed(
    pair: str | None,
    engine_dir: Path | None,
    peers: str,
    formats: str,
    noise: float,
    threads: int,
    tokens: int,
    rounds: int,
    draft_lengths: str | None,
    texts: tuple[str, ...],
    work: Path,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare tokens per second: ours at every draft length, and other runtimes on the same weights."""
    from .peer_formats import parse_formats
    from .peers import OUR_DRAFT_LENGTHS, parse_lengths, parse_peers
    from .speed import SpeedConfig, measure_speed
    from .speed_report import as_markdown

    if (pair is None) == (engine_dir is None):
        raise UsageError("give either --pair controlled or --engine-dir")
    _check_counts(threads, tokens, rounds)
    lengths = OUR_DRAFT_LENGTHS if draft_lengths is None else parse_lengths(draft_lengths)
    if plot is not None:
        if engine_dir is not None:
            raise UsageError("--plot draws the controlled pair", hint="leave --engine-dir out")
        from ...calibration.quality.accuracy_plot import require_matplotlib

        require_matplotlib()  # now, and not after an hour of measuring
        if 1 not in lengths:
            raise UsageError(
                "--plot needs the draft length 1, whose acceptance is its axis",
                hint=f"--draft-lengths 1,{draft_lengths}",
            )
    if texts and engine_dir is None:
        raise UsageError("--prompt is for --engine-dir: the controlled pair reads random tokens")
    config = SpeedConfig(
        work,
        bundle=engine_dir,
        noise=noise,
        peers=tuple(parse_peers(peers)),
        formats=parse_formats(formats),
        threads=threads,
        tokens=tokens,
        rounds=rounds,
        texts=texts,
        lengths=lengths,
    )
    result = measure_speed(config)
    if plot is not None:
        from .sweep import measure_sweep, plot_sweep

        result["sweep"] = measure_sweep(config)
        plot_sweep(result["sweep"], plot)
    _show(result, as_markdown, as_json)


@click.command(cls=CospecCommand)
@click.option("--contexts", default="128,512,1024,2048,4096,8192", show_default=True)
@click.option("--tokens", type=int, default=32, show_default=True, help="To generate behind each.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Turns of each row.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="onnxruntime-genai too.")
@threads_option
@work_option
@json_option
def context(
    contexts: str,
    tokens: int,
    rounds: int,
    peers: bool,
    threads: int,
    work: Path,
    as_json: bool,
) -> None:
    """Measure decoding behind, and reading of, contexts of several lengths, on the controlled pair."""
    from .context import ContextConfig, as_markdown, measure_context

    _check_counts(threads, tokens, rounds)
    try:
        lengths = tuple(int(word) for word in contexts.split(","))
    except ValueError as error:
        raise UsageError(f"--contexts: '{contexts}' is no list of numbers") from error
    config = ContextConfig(work, lengths, tokens, rounds, threads, peers=peers)
    _show(measure_context(config), as_markdown, as_json)


@click.command(cls=CospecCommand)
@click.option("--engine-dir", type=click.Path(path_type=Path), help="A bundle with a draft.")
@click.option("--target-gb", type=float, help="Instead of a bundle: gigabytes of the target.")
@click.option("--draft-gb", type=float, help="Gigabytes of the draft.")
@click.option("--acceptance", type=float, help="Of one drafted token. Default: as measured.")
@click.option("--devices", help="Names, separated by commas. Default: all that are known.")
@click.option(
    "--measured",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="What `cospec-bench speed --json` printed: acceptance, verify curve, and the error.",
)
@json_option
def project(
    engine_dir: Path | None,
    target_gb: float | None,
    draft_gb: float | None,
    acceptance: float | None,
    devices: str | None,
    measured: Path,
    as_json: bool,
) -> None:
    """Project a pair onto devices that we do not have, with the error that the same model has here."""
    from .bandwidth import PairBytes
    from .projection import as_text, project_devices, read_measurement

    if (engine_dir is None) == (target_gb is None) or (target_gb is None) != (draft_gb is None):
        raise UsageError("give either --engine-dir, or --target-gb and --draft-gb")
    if acceptance is not None and not 0 <= acceptance <= 1:
        raise UsageError(f"--acceptance is {acceptance}, but must be from 0 to 1")
    if engine_dir is not None:
        from ...runtime.bundle.reader import find_bundle
        from .bandwidth import sizes_of

        sizes = sizes_of(find_bundle(engine_dir))
    else:
        sizes = PairBytes(1e9 * (target_gb or 0), 1e9 * (draft_gb or 0))
    names = None if devices is None else [word.strip() for word in devices.split(",")]
    result = project_devices(sizes, read_measurement(measured), acceptance, names)
    _show(result, as_text, as_json)


def _check_counts(threads: int, tokens: int, rounds: int) -> None:
    at_least("--threads", threads, 1)
    at_least("--tokens", tokens, 2)
    at_least("--rounds", rounds, 1)


def _show(result: dict[str, Any], as_text: Any, as_json: bool) -> None:
    if as_json:
        print_json(_finite(result))
    else:
        click.echo(as_text(result))


def _finite(value: Any) -> Any:
    """Return `value` with infinities as text, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
