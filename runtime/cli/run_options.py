"""The command line's generation options, and prompts made from plain texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ...errors import UsageError
from ..decoding.options import GenerationOptions
from ..decoding.session import Prompt, Session
from ..sampling.declaration import Option, options_of
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
        self.name = option.kind.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a word as the option's value, or as one of them if the option repeats.

        Raises:
            OptionError: the value is out of range.
        """
        kind = self._option.kind
        try:
            parsed = kind.parse(value) if isinstance(value, str) else value
        except ValueError:
            wanted = f"of the form {kind.metavar}" if kind.repeats else kind.name
            self.fail(f"{value!r} is not {wanted}.", param, ctx)
        return parsed if kind.repeats else self._option.read(parsed)


def option_flag(name: str, help_text: str = "", flag: str = "") -> Callable[[Command], Command]:
    """Return the click option of one declared generation option; None means that it is not given."""
    declared = options_of(GenerationOptions)[name]
    flag = flag or declared.flag
    kind, text = declared.kind, help_text or declared.summary
    if kind.metavar == "":
        return click.option(flag, name, is_flag=True, default=None, help=text)
    shape = click.Choice(kind.choices) if kind.choices else OptionType(declared)
    return click.option(flag, name, type=shape, default=None, multiple=kind.repeats, help=text)


def generation_options(command: Command) -> Command:
    """Add all generation options to a command, which gets those that are given as `given`."""
    names = options_of(GenerationOptions)

    @wraps(command)
    def gathered(**values: Any) -> Any:
        given = {name: values.pop(name) for name in [*values] if name in names}
        given = {name: value for name, value in given.items() if value not in (None, ())}
        return command(given=given, **values)

    decorated: Command = gathered
    for name in reversed([*names]):
        decorated = option_flag(name)(decorated)
    return decorated
