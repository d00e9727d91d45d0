"""What cospec-run passes to a generation: its options, and what a line of a batch overrides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Any

import click

from ...errors import UsageError
from ..decoding.session import DraftLength, Mode, Overflow, Prompt, Session
from ..sampling.params import SamplingParams
from ..text.messages import Message

Command = Callable[..., Any]


@dataclass(frozen=True)
class Settings:
    """The arguments of `Session.stream` that a user chooses, under their names there."""

    max_tokens: int | None = None
    num_draft_tokens: DraftLength = None
    mode: Mode = "strict"
    threshold: float | None = None
    timeout: float | None = None
    overflow: Overflow = "stop"
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def arguments(self) -> dict[str, Any]:
        """Return them as keyword arguments."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def overridden(self, values: Mapping[str, object]) -> Settings:
        """Return the settings with some of them, or of the sampling parameters, replaced.

        Args:
            values: setting -> value as it stands in JSON.

        Raises:
            UsageError: a setting that there is not, or a value of the wrong kind or out of range.
        """
        own: dict[str, Any] = {}
        sampling: dict[str, Any] = {}
        for name, value in values.items():
            if name not in _KINDS:
                raise UsageError(f"there is no setting {name!a}", hint=f"there are: {_NAMES}")
            (sampling if name in _SAMPLING else own)[name] = _converted(name, value)
        if sampling:
            own["sampling"] = replace(self.sampling, **sampling)
        return replace(self, **own)


_SAMPLING = {each.name for each in fields(SamplingParams)}
_KINDS: dict[str, str] = {
    "max_tokens": "a whole number",
    "num_draft_tokens": "a whole number or 'auto'",
    "mode": "a text",
    "threshold": "a number",
    "timeout": "a number",
    "overflow": "a text",
    "temperature": "a number",
    "top_k": "a whole number",
    "top_p": "a number",
    "min_p": "a number",
    "repetition_penalty": "a number",
    "presence_penalty": "a number",
    "frequency_penalty": "a number",
    "logit_bias": "an object of numbers",
    "seed": "a whole number",
    "min_tokens": "a whole number",
    "stop": "a text or a list of texts",
    "logprobs": "a whole number",
}
_NAMES = ", ".join(_KINDS)


def _converted(name: str, value: object) -> object:
    """Return a value from JSON as the setting `name` takes it."""
    kind = _KINDS[name]
    if name == "num_draft_tokens" and value == "auto":
        return value
    if name == "stop":
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    elif name == "logit_bias":
        if isinstance(value, dict) and all(
            key.isdecimal() and _is_number(bias) for key, bias in value.items()
        ):
            return {int(key): float(bias) for key, bias in value.items()}
    elif kind.startswith("a whole number"):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind == "a number":
        if _is_number(value):
            return value
    elif isinstance(value, str):
        return value
    raise UsageError(f"{name} must be {kind}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Prompts:
    """Makes what a session takes from what a user gives.

    Args:
        session: that will take it.
        system: a first message for plain texts, or None.
        raw: plain texts are continued as they are.

    Raises:
        UsageError: a system message where texts are not sent as messages.
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


class DraftLengthType(click.ParamType):  # type: ignore[type-arg]
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


def _sampling_option(flag: str, kind: type, text: str) -> Callable[[Command], Command]:
    """Return an option whose default is that of the sampling parameter it sets."""
    default = getattr(SamplingParams, flag.removeprefix("--").replace("-", "_"))
    return click.option(
        flag, type=kind, default=default, show_default=default is not None, help=text
    )


_OPTIONS = (
    click.option("--max-tokens", type=int, help="Tokens to generate at most."),
    click.option(
        "--mode",
        type=click.Choice(["strict", "collab"]),
        default=Settings.mode,
        show_default=True,
        help="strict: exactly what the target alone would write. collab: the arbiter may keep draft "
        "tokens.",
    ),
    click.option(
        "--threshold",
        type=float,
        help="collab: score above which a draft token stays; 1 is strict. Default: the bundle's.",
    ),
    click.option(
        "--num-draft-tokens",
        type=DraftLengthType(),
        help="Tokens to draft a round; 0 decodes plainly, 'auto' drafts as many as pay for themselves.",
    ),
    _sampling_option("--temperature", float, "0 takes the most likely tokens, more draws them."),
    _sampling_option("--top-k", int, "Draw from the K most likely tokens; 0 from all."),
    _sampling_option("--top-p", float, "Draw from the fewest tokens that hold this probability."),
    _sampling_option(
        "--min-p", float, "Draw from tokens with this share of the most likely one's probability."
    ),
    _sampling_option(
        "--repetition-penalty", float, "Above 1, tokens of prompt and output become less likely."
    ),
    _sampling_option(
        "--presence-penalty", float, "Subtracted from the logits of tokens that the output holds."
    ),
    _sampling_option(
        "--frequency-penalty", float, "Subtracted from them as often as they occur in the output."
    ),
    _sampling_option("--seed", int, "The same seed gives the same output. Default: a new one."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="Text that ends the output and does not belong to it; may be repeated.",
    ),
    _sampling_option("--min-tokens", int, "Tokens before which nothing ends the output."),
    _sampling_option(
        "--logprobs",
        int,
        "With --json or --jsonl: log-probability of each token, and of this many most likely ones.",
    ),
    click.option("--timeout", type=float, help="Seconds after which an answer ends as it is."),
    click.option(
        "--overflow",
        type=click.Choice(["stop", "slide"]),
        default=Settings.overflow,
        show_default=True,
        help="When the cache is full: stop, or forget the older half of the text and go on.",
    ),
)


def settings_options(command: Command) -> Command:
    """Add the options of a generation to a command, which gets them as one argument `settings`."""

    @wraps(command)
    def gathered(**given: Any) -> Any:
        sampling = {name: given.pop(name) for name in _SAMPLING & given.keys()}
        own = {name: given.pop(name) for name in _KINDS.keys() & given.keys()}
        return command(settings=Settings(**own, sampling=SamplingParams(**sampling)), **given)

    decorated: Command = gathered
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
