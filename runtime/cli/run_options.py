"""The command line's generation options, and prompts made from plain texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ..decoding.options import GenerationOptions
from ..decoding.session import Prompt, Session
from ..sampling.declaration import Option, Texts, TokenIds, options_of
from ..text.messages import Message

Command = Callable[..., Any]


class Prompts:
    """Makes prompts from plain texts.

    Args:
        session: that will generate.
        system: a first message for each text, or None.
        raw: continue texts as they are, without the chat template.

    Raises:
        UsageError: a system message, but texts are not sent as messages.
    """

    def __init__(self, session: Session, system: str | None, *, raw: bool) -> None:
        self.session = session
        self._as_messages = session.codec.has_chat_template and not raw
        self._before: list[Message] = []
        if system is not None:
            if not self._as_messages:
                raise UsageError(
                    "--system needs a bundle with a chat template, and does not go with --raw"
                )
            self._before = [{"role": "system", "content": system}]

    def of_text(self, text: str) -> Prompt:
        """Return the prompt of a plain text."""
        if not self._as_messages or not text.strip():  # an empty one is refused as a text
            return text
        return [*self._before, {"role": "user", "content": text}]


class OptionType(click.ParamType):  # type: ignore[type-arg]
    """The command line's form of a declared option.

    Args:
        option: the declaration.
    """

    def __init__(self, option: Option) -> None:
        self._option = option
        metavars = {Texts: "TEXT", str: "TEXT", TokenIds: "ID", int: "N", float: "X"}
        self.name = metavars.get(option.type, "N|auto")
        if option.container is Mapping:
            self.name = "NAME=VALUE"
        if option.file:
            self.name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a word as the option's value, or as an item of it if the option has several.

        Raises:
            OptionError: the value has the wrong type or is out of range.
            UsageError: a file cannot be read.
        """
        option = self._option
        if option.file:
            return option.read(_text_of(Path(value)))
        if option.type in (Texts, str):
            return value
        if option.container is Mapping:
            name, equals, text = value.partition("=")
            if not (name and equals):
                self.fail(f"{value!r} is not of the form NAME=VALUE.", param, ctx)
            return name, _json_or_text(text)
        read = _json_or_text(value)
        return read if option.container else option.read(read)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}") from error


def _json_or_text(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def option_flag(name: str, help_text: str = "", flag: str = "") -> Callable[[Command], Command]:
    """Return the click option of one declared generation option; None means that it is not given.

    Args:
        name: of the option.
        help_text: instead of the declared help.
        flag: instead of the declared flag.
    """
    declared = options_of(GenerationOptions)[name]
    names, text = (flag or declared.flag, name), help_text or declared.summary
    if declared.type is bool:
        pair = f"{names[0]}/--no-{names[0][2:]}" if declared.default is None else names[0]
        return click.option(pair, name, is_flag=True, default=None, help=text)
    several = declared.container is not None
    if declared.choices:
        return click.option(*names, type=click.Choice(declared.choices), default=None, help=text)
    kind = OptionType(declared)
    return click.option(
        *names, type=kind, metavar=kind.name, default=None, multiple=several, help=text
    )


def generation_options(command: Command) -> Command:
    """Add all generation options to a command, which gets those that are given as `given`."""
    names = options_of(GenerationOptions)

    @wraps(command)
    def gathered(**values: Any) -> Any:
        given = {name: values.pop(name) for name in [*values] if name in names}
        for name, items in given.items():  # of options that may be repeated
            if isinstance(items, tuple) and names[name].container is Mapping:
                given[name] = dict(items)
        given = {name: value for name, value in given.items() if value not in (None, (), {})}
        return command(given=given, **values)

    decorated: Command = gathered
    for name in reversed([*names]):
        decorated = option_flag(name)(decorated)
    return decorated
