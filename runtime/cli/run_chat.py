"""cospec-run's conversation: each line is a message, or a command if it begins with /."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...errors import BundleError, CospecError, ResourceError, UsageError
from ..bundle.durable import write_whole
from ..bundle.json_input import parse_json_object
from ..decoding.chat import Chat
from ..decoding.options import GenerationOptions
from ..decoding.session import Session
from ..decoding.stats import GenerationStats
from ..text.messages import Message, MessageError, check_messages
from ..trace.page import write_page
from ..trace.record import Trace
from .run_output import Painter, describe, incomplete, print_any_text, warn_if_uncertified
from .run_terminal import ctrl_c_cancels, line_editing, lines

_MAX_CONVERSATION_BYTES = 64 << 20


class Conversation:
    """A conversation on the terminal, or with lines from a pipe.

    Args:
        session: of a bundle with a chat template.
        folder: the bundle's.
        options: of the answers, until a command changes them.
        system: a first message, or None.
        provenance: colour the tokens of answers.
        stats: print the statistics of each answer.
        trace: page that shows the conversation, rewritten after each change; or None.

    Raises:
        UsageError: the bundle has no chat template, or an option is out of range.
        ResourceError: the page cannot be written.
    """

    def __init__(
        self,
        session: Session,
        folder: Path,
        options: GenerationOptions,
        system: str | None,
        *,
        provenance: bool,
        stats: bool,
        trace: Path | None,
    ) -> None:
        if not session.codec.has_chat_template:
            raise UsageError(
                "this bundle has no chat template, so there is nothing to converse with",
                hint='give a prompt: cospec-run --engine-dir DIR "your prompt"',
            )
        self._chat = Chat(session, system)
        self._session = session
        self._folder = folder
        self._options = options
        self._provenance = provenance
        self._stats = stats
        self._trace = trace
        self._last: GenerationStats | None = None
        self._warned = self._ended = False
        self._use(options)
        self._show([])  # a file that cannot be written is an error now
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "help": (self._help, "list the commands"),
            "stats": (self._show_stats, "show the statistics of the last answer"),
            "mode": (self._mode, "set strict or collab; without a word, show the mode"),
            "threshold": (self._threshold, "set the score above which collab keeps a draft token"),
            "rewind": (self._rewind, "remove the last turn, or the last N"),
            "clear": (self._clear, "start again with the same system message"),
            "system": (self._system, "replace the system message; without a text, remove it"),
            "save": (self._save, "write the conversation to a file"),
            "load": (self._load, "continue a conversation from a file"),
            "quit": (self._quit, "end the chat, as Ctrl-D does"),
        }

    def run(self, *, terminal: bool) -> int:
        """Converse until the input ends; return the exit code.

        On a terminal the exit code is 0. With lines from a pipe it is that of the first error.
        """
        print_any_text()
        if terminal:
            click.echo(
                "/help lists the commands. Ctrl-C ends an answer, Ctrl-D the chat.", err=True
            )
        code = 0
        with line_editing(terminal):
            for line in lines(terminal):
                try:
                    self._take(line.strip())
                except CospecError as error:
                    click.echo(f"error: {error}", err=True)
                    code = code or error.exit_code
                if self._ended:
                    break
        return 0 if terminal else code

    def _take(self, text: str) -> None:
        """Send a message, or run a command."""
        if text.startswith("//"):  # a message that begins with /
            self._answer(text[1:])
        elif text.startswith("/"):
            name, _, rest = text[1:].partition(" ")
            if name not in self._commands:
                raise UsageError(
                    f"there is no command /{name}",
                    hint="/help lists them; a message that begins with / is typed with //",
                )
            self._commands[name][0](rest.strip())
        elif text:
            self._answer(text)

    def _answer(self, text: str) -> None:
        trace = None if self._trace is None else Trace(self._session)
        turn = self._chat.send(text, **{**self._arguments(self._options), "observer": trace})
        stream = turn.stream
        self._last = stream.stats
        painter = (
            Painter(self._session.codec.stream(stream.prompt_tokens)) if self._provenance else None
        )
        with ctrl_c_cancels(stream):
            for piece in turn:
                click.echo(piece.text if painter is None else painter.paint(piece), nl=False)
        click.echo()
        if stream.finish_reason not in ("eos", "stop"):
            click.echo(f"[ended: {stream.finish_reason}]", err=True)
        if stream.is_complete is False:
            click.echo(incomplete(stream.finish_reason), err=True)
        if self._stats:
            click.echo(describe(stream.stats), err=True)
        if trace is not None:
            self._show([*self._traced, {"said": text, **trace.to_json(stream.completion())}])

    def _show(self, turns: list[dict[str, Any]]) -> None:
        """Write the page of the turns that were answered here."""
        self._traced = turns
        if self._trace is not None:
            write_page(self._trace, turns)

    def _use(self, options: GenerationOptions) -> None:
        """Answer with these options from now on.

        Raises:
            UsageError: they do not fit the bundle, or a value is out of range.
        """
        self._session.plan("x", **self._arguments(options))
        self._options = options
        if options.mode == "collab" and not self._warned:
            self._warned = True
            warn_if_uncertified(self._folder, self._session.manifest)

    @staticmethod
    def _arguments(options: GenerationOptions) -> dict[str, Any]:
        """Return the options of an answer: a threshold waits until the mode is `collab`."""
        return vars(options if options.mode == "collab" else replace(options, threshold=None))

    def _quit(self, _: str) -> None:
        self._ended = True

    def _help(self, _: str) -> None:
        arguments = {
            "mode": "[strict|collab]",
            "threshold": "X",
            "rewind": "[N]",
            "system": "[TEXT]",
            "save": "FILE",
            "load": "FILE",
        }
        for name, (_command, meaning) in self._commands.items():
            usage = f"/{name} {arguments.get(name, '')}"
            click.echo(f"  {usage:24}{meaning}", err=True)

    def _show_stats(self, _: str) -> None:
        if self._last is None:
            raise UsageError("there was no answer yet")
        click.echo(describe(self._last), err=True)

    def _mode(self, word: str) -> None:
        if word:
            self._use(replace(self._options, mode=word))  # type: ignore[arg-type]
        click.echo(f"mode: {self._options.mode}", err=True)

    def _threshold(self, word: str) -> None:
        self._use(replace(self._options, threshold=_number(float, word, "/threshold 0.7")))
        if self._options.mode == "strict":
            click.echo("this has an effect after /mode collab", err=True)

    def _rewind(self, word: str) -> None:
        back = _number(int, word, "/rewind 2") if word else 1
        self._chat.rewind(back)
        self._show(self._traced[:-back])
        turns = sum(message["role"] == "user" for message in self._chat.messages)
        click.echo(f"turns left: {turns}", err=True)

    def _clear(self, _: str) -> None:
        self._chat.messages = [each for each in self._chat.messages if each["role"] == "system"]
        self._show([])

    def _system(self, text: str) -> None:
        others = [each for each in self._chat.messages if each["role"] != "system"]
        first: list[Message] = [{"role": "system", "content": text}] if text else []
        self._chat.messages = first + others

    def _save(self, name: str) -> None:
        path = _path(name, "/save talk.json")
        data = json.dumps({"messages": self._chat.messages}, indent=2, ensure_ascii=False)
        try:
            write_whole(path, (data + "\n").encode("utf-8"))
        except UnicodeEncodeError as error:
            raise ResourceError(f"{path} could not be written: {error}") from error
        click.echo(f"written: {path}", err=True)

    def _load(self, name: str) -> None:
        path = _path(name, "/load talk.json")
        messages = read_messages(path)
        self._session.codec.encode_chat(messages, add_generation_prompt=True)  # may be refused
        self._chat.messages = messages
        self._show([])
        click.echo(f"messages: {len(messages)}", err=True)


def read_messages(path: Path) -> list[Message]:
    """Return the messages of a conversation that /save has written.

    Raises:
        UsageError: the file cannot be read or is none.
    """
    try:
        data = path.read_bytes()
        value = parse_json_object(data, max_bytes=_MAX_CONVERSATION_BYTES, max_depth=8)
    except (OSError, BundleError) as error:
        raise UsageError(f"{path} is no saved conversation: {error}") from error
    try:
        return [*check_messages(value.get("messages"))]
    except MessageError as error:
        raise UsageError(
            f"{path} is no saved conversation: {error.message}", hint=error.hint
        ) from error


def _number(kind: type[Any], word: str, example: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise UsageError(f"{word!a} is no number", hint=f"for example: {example}") from None


def _path(name: str, example: str) -> Path:
    if not name:
        raise UsageError("no file was named", hint=f"for example: {example}")
    return Path(name).expanduser()
