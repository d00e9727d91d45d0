"""cospec-run: generate text with a bundle."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import click

from ..bundle import find_bundle
from ..completion import Completion
from ..errors import BundleError, UsageError
from ..files import parse_json_object
from ..manifest import Manifest
from ..session import DraftLength, load
from ..stats import GenerationStats
from ..text import TextStream
from .common import CospecCommand, engine_dir_option, json_option, print_json

EPILOG = """
\b
Examples:
  cospec-run --engine-dir models/ "What is 12 + 30?"
  echo "Once upon a time" | cospec-run --engine-dir models/tiny --raw
  cospec-run --engine-dir models/tiny --json "What is 12 + 30?"
  cospec-run --engine-dir models/tiny --mode collab --provenance "What is 12 + 30?"
"""

COLOURS = {"agreed": "green", "draft": "magenta", "bonus": "cyan", "target": "yellow"}
"""How --provenance shows who chose a token."""

_MAX_CERTIFICATE_BYTES = 16 << 20


class _DraftLength(click.ParamType):  # type: ignore[type-arg]
    """A number, or `auto`."""

    name = "N|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> DraftLength:
        """Return the number, or `auto`."""
        if value == "auto":
            return "auto"
        try:
            return int(value)
        except ValueError:
            self.fail(f"'{value}' is neither a number nor 'auto'.", param, ctx)


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.argument("prompt", required=False)
@engine_dir_option
@click.option("--max-tokens", type=int, help="Tokens to generate at most.")
@click.option(
    "--mode",
    type=click.Choice(["strict", "collab"]),
    default="strict",
    show_default=True,
    help="strict: exactly the target's greedy output. collab: the arbiter may keep draft tokens.",
)
@click.option(
    "--threshold",
    type=float,
    help="collab: score above which a draft token stays; 1 is strict. Default: the bundle's.",
)
@click.option(
    "--drafter",
    type=click.Choice(["auto", "model", "ngram", "none"]),
    default="auto",
    show_default=True,
    help="Where proposals come from; auto is the draft model, or ngram without one.",
)
@click.option(
    "--num-draft-tokens",
    type=_DraftLength(),
    help="Tokens to draft a round; 0 decodes plainly, 'auto' drafts as many as pay for themselves.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "mixed"]),
    default="auto",
    show_default=True,
    help="auto: TensorRT for a bundle exported with --trt, where it and a GPU are there. mixed: the "
    "target on TensorRT, the draft on ONNX Runtime. The first run on TensorRT builds the engines.",
)
@click.option("--threads", type=int, help="Threads of a pass. Default: one a physical core.")
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Execution provider of ONNX Runtime.",
)
@click.option("--provenance", is_flag=True, help="Colour each token by who chose it.")
@click.option("--stats", is_flag=True, help="Print statistics on stderr at the end.")
@json_option
def main(
    prompt: str | None,
    engine_dir: Path,
    max_tokens: int | None,
    mode: str,
    threshold: float | None,
    drafter: str,
    num_draft_tokens: DraftLength,
    raw: bool,
    backend: str,
    threads: int | None,
    provider: str,
    provenance: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Generate text from PROMPT, or from standard input.

    The prompt is sent as a chat message where the bundle has a chat template, unless --raw is given.
    """
    from ..engines.onnxruntime import OrtOptions

    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}, but must be at least 1")
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError(
                "no prompt", hint='cospec-run --engine-dir DIR "your prompt", or pipe one in'
            )
        prompt = sys.stdin.read().rstrip("\n")
    options = OrtOptions(threads=threads, provider=provider)  # type: ignore[arg-type]
    folder = find_bundle(engine_dir)
    session = load(
        folder,
        drafter=drafter,  # type: ignore[arg-type]
        backend=backend,  # type: ignore[arg-type]
        options=options,
    )
    as_chat = session.codec.has_chat_template and not raw and prompt.strip()
    stream = session.stream(
        [{"role": "user", "content": prompt}] if as_chat else prompt,
        max_tokens=max_tokens,
        num_draft_tokens=num_draft_tokens,
        mode=mode,  # type: ignore[arg-type]
        threshold=threshold,
    )
    if mode == "collab" and not is_certified(folder, session.manifest):
        click.echo(
            "this bundle's arbiter was never certified: nobody measured whether its answers are as "
            "right as the target's; run cospec-calibrate",
            err=True,
        )
    if as_json:
        print_json(stream.completion().to_json())
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Text of a model may hold any character: where the output's encoding lacks it, print a "?".
        sys.stdout.reconfigure(errors="replace")
    for piece in stream:
        if not provenance:
            click.echo(piece.text, nl=False)
    completion = stream.completion()
    if provenance:
        _echo_provenance(session.codec.stream(stream.prompt_tokens), completion)
    click.echo()
    if stats:
        click.echo(describe(completion.stats), err=True)


def is_certified(folder: Path, manifest: Manifest) -> bool:
    """Say whether the certificate of a bundle, checked already, tells what its arbiter is worth.

    Raises:
        BundleError: it is not a JSON object, or tells of other files than the bundle's.
    """
    if manifest.certificate is None:
        return False
    data = (folder / manifest.certificate).read_bytes()
    facts = parse_json_object(data, max_bytes=_MAX_CERTIFICATE_BYTES, max_depth=16)
    quality = facts.get("quality")
    if not isinstance(quality, dict):
        return False
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    measured = quality.get("measured_on", {})
    other = sorted(path for path in measured if hashes.get(path) != measured[path])
    if other:
        raise BundleError(
            f"{folder / manifest.certificate} was measured on another {other[0]} than this bundle's",
            hint="calibrate this bundle with cospec-calibrate, or use the mode 'strict'",
        )
    return True


def describe(stats: GenerationStats) -> str:
    """Return the statistics as a few lines for people."""

    def figure(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    tpot = stats.tpot
    rate = None if not tpot else 1 / tpot
    overrides = []
    if stats.num_capped:  # somebody decided at mismatches
        capped = ", ".join(f"{n} {cap}" for cap, n in stats.num_capped.items() if n)
        overrides = [
            f"overrides    {stats.num_overrides} of {stats.num_mismatches} mismatches "
            f"({figure(stats.override_rate, '.0%')})" + (f"; capped: {capped}" if capped else "")
        ]
    return "\n".join(
        [
            f"tokens       {stats.num_prompt_tokens} prompt, {stats.num_generated_tokens} generated",
            f"passes       {stats.num_target_passes} of the target, "
            f"{figure(stats.tokens_per_target_pass, '.2f')} tokens each",
            f"drafted      {stats.num_draft_tokens}, accepted {stats.num_accepted_tokens} "
            f"({figure(stats.draft_acceptance_rate, '.0%')})",
            *overrides,
            f"time         {stats.ttft * 1000:.1f} ms to the first tokens, then "
            f"{figure(rate, '.0f')} tokens/s",
        ]
    )


def _echo_provenance(text: TextStream, completion: Completion) -> None:
    """Print the output token by token in the colours of COLOURS, and a legend."""
    for token, who in zip(completion.tokens, completion.provenance, strict=True):
        click.secho(text.push([token]), fg=COLOURS[who], nl=False)
    click.echo(text.finish(), nl=False)
    legend = "  ".join(click.style(who, fg=colour) for who, colour in COLOURS.items())
    click.echo(f"\n[{legend}]", nl=False)
