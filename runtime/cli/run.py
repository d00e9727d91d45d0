"""cospec-run: generate text with a bundle: one answer, a conversation, or a file of prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ..bundle.reader import find_bundle
from ..decoding.options import GenerationOptions
from ..decoding.session import Prompt, Session
from .common import CospecCommand, engine_dir_option, json_option, print_json, print_json_line
from .engine_settings import EngineSettings, engine_options
from .run_options import Prompts, generation_options
from .run_output import (
    Painter,
    describe,
    end_json,
    incomplete,
    legend,
    print_any_text,
    warn_if_uncertified,
)
from .untrusted import supervise

EPILOG = """
\b
Examples:
  cospec-run --engine-dir models/ "What is 12 + 30?"
  cospec-run --engine-dir models/ --chat --trace talk.html
  echo "Once upon a time" | cospec-run --engine-dir models/tiny --raw
  cospec-run --engine-dir models/tiny --temperature 0.8 --top-p 0.95 --seed 7 "A riddle, please."
  cospec-run --engine-dir models/tiny --json "What is 12 + 30?"
  cospec-run --engine-dir models/tiny --mode collab --trace trace.html "What is 12 + 30?"
  cospec-run --engine-dir models/tiny --batch prompts.jsonl --output answers.jsonl

\b
A line of a batch is a prompt or messages, with any options that differ from the command's:
  {"id": "a", "prompt": "What is 12 + 30?", "max_tokens": 64}
  {"messages": [{"role": "user", "content": "Hello."}], "temperature": 0.8, "seed": 7}
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.argument("prompt", required=False)
@engine_dir_option
@click.option(
    "--chat", is_flag=True, help="Hold a conversation. Default on a terminal without PROMPT."
)
@click.option(
    "--system", metavar="TEXT", help="System message before the conversation or each prompt."
)
@generation_options
@click.option("--raw", is_flag=True, help="Continue the prompt as text, without the chat template.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="IN.jsonl",
    help="Answer the prompts of this file.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.jsonl",
    help="Write the answers of a batch to this file. Answers that it already has are kept.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Record bad lines of a batch as errors and exit with 1. The next run tries them again.",
)
@engine_options
@click.option(
    "--untrusted",
    is_flag=True,
    help="For a bundle from somebody you do not trust: run it in a child process whose memory and "
    "loading time are limited. This is not a sandbox: the child can read and write your files.",
)
@click.option("--provenance", is_flag=True, help="Colour each token by the model that chose it.")
@click.option("--stats", is_flag=True, help="Print statistics on stderr after each answer.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write a page that shows which model chose each token, and why. In a chat it is rewritten "
    "after each answer.",
)
@json_option
@click.option("--jsonl", is_flag=True, help="Print one JSON object per round, as it comes.")
def main(
    prompt: str | None,
    engine_dir: Path,
    chat: bool,
    system: str | None,
    given: dict[str, Any],
    raw: bool,
    batch: Path | None,
    output: Path | None,
    keep_going: bool,
    engines: EngineSettings,
    untrusted: bool,
    provenance: bool,
    stats: bool,
    trace: Path | None,
    as_json: bool,
    jsonl: bool,
) -> int:
    """Generate text from PROMPT, or from standard input.

    The prompt is sent as a chat message if the bundle has a chat template, unless --raw is given. On a
    terminal without PROMPT a conversation starts.
    """
    _refuse_what_does_not_go_together(click.get_current_context().params)
    if GenerationOptions().updated(given).logprobs is not None and not (as_json or jsonl or batch):
        raise UsageError("--logprobs shows nothing without --json, --jsonl or --batch")
    terminal = sys.stdin.isatty()
    if prompt is None and batch is None and not chat and not terminal:
        prompt = sys.stdin.read().rstrip("\n")
    folder = find_bundle(engine_dir)
    loaded = supervise(folder) if untrusted else lambda: None
    session = engines.load(folder)
    loaded()
    options = session.defaults.updated(given)
    if batch is not None and output is not None:
        from .run_batch import run_batch

        prompts = Prompts(session, system, raw=raw)
        done = run_batch(batch, output, prompts, options, folder, keep_going=keep_going)
        print_json(done.to_json()) if as_json else click.echo(done.summary(), err=True)
        return 1 if done.failed else 0
    if prompt is None:
        from .run_chat import Conversation

        if raw or as_json or jsonl:
            raise UsageError(
                "no prompt", hint='cospec-run --engine-dir DIR "your prompt", or pipe one in'
            )
        conversation = Conversation(
            session, folder, options, system, provenance=provenance, stats=stats, trace=trace
        )
        return conversation.run(terminal=terminal)
    made = Prompts(session, system, raw=raw).of_text(prompt)
    _answer(
        session,
        folder,
        made,
        options,
        provenance=provenance,
        stats=stats,
        trace=trace,
        as_json=as_json,
        jsonl=jsonl,
    )
    return 0


def _answer(
    session: Session,
    folder: Path,
    prompt: Prompt,
    options: GenerationOptions,
    *,
    provenance: bool,
    stats: bool,
    trace: Path | None,
    as_json: bool,
    jsonl: bool,
) -> None:
    """Generate one answer and print it as it comes."""
    from ..trace.record import Trace

    observer = None if trace is None else Trace(session)
    stream = session.stream(prompt, **{**vars(options), "observer": observer})
    if options.mode == "collab":
        warn_if_uncertified(folder, session.manifest)
    print_any_text()
    painter = Painter(session.codec.stream(stream.prompt_tokens)) if provenance else None
    for piece in stream:
        if jsonl:
            print_json_line(piece.to_json())
            sys.stdout.flush()
        elif not as_json:
            click.echo(piece.text if painter is None else painter.paint(piece), nl=False)
    completion = stream.completion()
    if observer is not None and trace is not None:
        observer.write(trace, completion)
    if as_json:
        print_json(completion.to_json())
    elif jsonl:
        print_json_line(end_json(completion))
    else:
        click.echo(f"\n{legend()}" if provenance else "")
    if completion.is_complete is False:
        click.echo(incomplete(completion.finish_reason), err=True)
    if stats:
        click.echo(describe(completion.stats), err=True)


_ALONE = (
    # An option, the options that it needs, and those that exclude it; with click's names.
    ("chat", (), ("prompt", "raw", "as_json", "jsonl", "batch")),
    ("batch", ("output",), ("prompt", "jsonl", "trace", "provenance", "stats")),
    ("output", ("batch",), ()),
    ("keep_going", ("batch",), ()),
    ("jsonl", (), ("as_json", "provenance")),
    ("as_json", (), ("provenance",)),
)


def _refuse_what_does_not_go_together(given: dict[str, object]) -> None:
    """Refuse combinations in which an option would have no effect."""

    def is_given(name: str) -> bool:
        return given[name] not in (None, False)

    def flag(name: str) -> str:
        if name == "prompt":
            return "PROMPT"
        return "--json" if name == "as_json" else f"--{name.replace('_', '-')}"

    for name, needed, others in _ALONE:
        if not is_given(name):
            continue
        for other in needed:
            if not is_given(other):
                raise UsageError(f"{flag(name)} needs {flag(other)}")
        for other in others:
            if is_given(other):
                raise UsageError(f"{flag(name)} does not go with {flag(other)}")
