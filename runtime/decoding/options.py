"""Every option of a generation, declared once.

The library's keyword arguments, the command line, batch lines and HTTP requests all read these fields,
which include those of `SamplingParams`. A new option is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, fields, replace
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from ...errors import UsageError
from ..sampling.declaration import OptionError, Texts, option, options_of
from ..sampling.grammar import GrammarKind, GrammarSpec
from ..sampling.json_schema import schema_text
from ..sampling.params import SamplingParams
from ..text.tool_calls import tools_from

if TYPE_CHECKING:
    from ..arbitration.protocol import Arbiter
    from ..drafting.protocol import Drafter
    from .loop import Observer

Mode = Literal["strict", "collab"]
Overflow = Literal["stop", "slide"]
DraftLength = int | Literal["auto"] | None


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingParams):
    """All that a caller may choose about a generation.

    Fields without an option's help are for programs only.

    Attributes:
        sampling: all sampling parameters at once, in place of the separate fields.
        arbiter: for `collab`: decides instead of the bundle's own arbiter.
        drafter: proposes tokens instead of the session's own drafter. It serves one generation.
        observer: sees each round, such as a trace.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    max_tokens: int | None = option(
        None, "Generate at most this many tokens. Default: the bundle's.", low=1, unit="tokens"
    )
    mode: Mode = option(
        "strict",
        "strict: exactly what the target alone would write. collab: where the models disagree, the "
        "arbiter may keep the draft's token.",
    )
    threshold: float | None = option(
        None,
        "collab: keep a draft token if its score is above this. 1 is strict; 0 keeps every token that "
        "the caps allow. Default: the bundle's.",
        low=0,
        high=1,
    )
    num_draft_tokens: DraftLength = option(
        None,
        "Draft this many tokens per round. 0 is plain decoding; auto chooses the fastest number in "
        "each round, in strict mode only. Default: auto in strict mode with quantised "
        "weights on a CPU, else the bundle's number.",
        low=0,
        unit="tokens",
    )
    timeout: float | None = option(
        None,
        "Stop after this many seconds and return the partial output.",
        above=0,
        unit="seconds",
        http="",
    )
    overflow: Overflow = option(
        "stop",
        "When the cache is full, stop, or slide: forget the older half of the text and continue.",
    )
    json_schema: str | bool | Mapping[str, Any] | None = option(
        None,
        "The output is JSON that matches this JSON schema. On the command line: a file.",
        file=True,
        http="",
    )
    regex: str | None = option(
        None, "The output matches this regular expression as a whole.", http=""
    )
    grammar: str | None = option(
        None,
        "The output matches this grammar, in Lark's notation or in GBNF. On the command line: a file.",
        file=True,
        http="",
    )
    choice: Texts = option(
        (), "The output is one of these texts. May be given several times.", http=""
    )
    greedy: bool = option(
        False,
        "Ignore the sampling parameters that the model's author recommends. Without any, the most "
        "likely tokens are chosen.",
    )
    template: str | None = option(
        None, "Name of the chat template, if the bundle has several.", flag="--template", http=""
    )
    template_args: Mapping[str, Any] = option(
        {},
        "A variable of the chat template, such as enable_thinking=false. May be given several times.",
        flag="--template-arg",
        http="chat_template_kwargs",
    )
    tools: str | tuple[Mapping[str, Any], ...] = option(
        (),
        "Functions that the model may call, for the chat template: a JSON list in OpenAI's form. "
        "On the command line: a file.",
        file=True,
        http="",
    )
    add_generation_prompt: bool | None = option(
        None,
        "End the prompt with the beginning of an answer. Default: yes, unless the last message is "
        "continued.",
    )
    continue_final_message: bool = option(
        False, "Continue the last message instead of beginning an answer to it."
    )
    sampling: InitVar[SamplingParams | None] = None
    arbiter: Arbiter | None = field(default=None, compare=False)
    drafter: Drafter | None = field(default=None, compare=False)
    observer: Observer | None = field(default=None, compare=False)

    def __post_init__(self, sampling: SamplingParams | None) -> None:
        """Take over `sampling`, and check every value."""
        for each in () if sampling is None else fields(sampling):
            object.__setattr__(self, each.name, getattr(sampling, each.name))
        super().__post_init__()
        if self.greedy and self.temperature > 0:
            raise OptionError(
                "greedy", f"greedy and temperature {self.temperature} contradict each other"
            )
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_text(self.json_schema))
        object.__setattr__(self, "tools", tools_from(self.tools))

    def updated(self, given: Mapping[str, Any]) -> GenerationOptions:
        """Return the options with some of them replaced; None means that an option is not given.

        Args:
            given: values by name, as Python or JSON has them. `sampling` replaces all sampling
                parameters that are not given by themselves.

        Raises:
            OptionError: a value has the wrong type or is out of range.
            UsageError: there is no such option.
        """
        known = options_of(GenerationOptions)
        for name in given:
            if name not in known and name not in _FOR_PROGRAMS:
                raise UsageError(
                    f"there is no option {name!a:.60}", hint=f"the options are: {', '.join(known)}"
                )
        values = {name: value for name, value in given.items() if value is not None}
        if values.get("temperature"):
            values = {"greedy": False} | values
        sampling = values.pop("sampling", SamplingParams() if values.get("greedy") else None)
        if sampling is not None:
            values = {each.name: getattr(sampling, each.name) for each in fields(sampling)} | values
        return replace(self, **values)

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        """The grammar that the options ask for, or None.

        Raises:
            UsageError: they ask for several.
        """
        text = self.grammar
        notation: GrammarKind = "gbnf" if text is not None and "::=" in text else "lark"
        asked: dict[str, tuple[GrammarKind, Any]] = {
            "json_schema": ("json_schema", self.json_schema),
            "regex": ("regex", self.regex),
            "grammar": (notation, text),
            "choice": ("choice", self.choice or None),
        }
        given = {name: each for name, each in asked.items() if each[1] is not None}
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(given)} are given, but the output can follow one grammar only",
                hint="leave out all but one",
            )
        return next((GrammarSpec(*each) for each in given.values()), None)

    def to_json(self) -> dict[str, Any]:
        """Return the options that differ from their defaults; what only programs pass is left out."""
        known = options_of(GenerationOptions).items()
        values = {name: (getattr(self, name), option.default) for name, option in known}
        return {name: value for name, (value, default) in values.items() if value != default}


CHAT_OPTIONS = (
    *("template", "template_args", "tools"),
    *("add_generation_prompt", "continue_final_message"),
)
"""Options that render messages; they have no meaning for prompts of text or tokens."""

_FOR_PROGRAMS = ("sampling", "arbiter", "drafter", "observer")


class HasDefaults(Protocol):
    """An object whose methods take generation options."""

    @property
    def defaults(self) -> GenerationOptions:
        """The values of options that a call does not give."""


Keywords = ParamSpec("Keywords")
Owner = TypeVar("Owner", bound=HasDefaults)
Subject = TypeVar("Subject")
Result = TypeVar("Result")


def _taking(
    declaration: Callable[Keywords, GenerationOptions],
) -> Callable[
    [Callable[[Owner, Subject, GenerationOptions], Result]],
    Callable[Concatenate[Owner, Subject, Keywords], Result],
]:
    """Return the decorator `takes_options`, whose keywords have the types of the declaration."""

    def decorate(
        method: Callable[[Owner, Subject, GenerationOptions], Result],
    ) -> Callable[Concatenate[Owner, Subject, Keywords], Result]:
        @wraps(method)
        def call(self: Owner, *subject: Any, **given: Any) -> Result:
            if not subject and first in given:
                subject = (given.pop(first),)
            if len(subject) != 1:
                raise TypeError(f"{method.__name__}() takes {first} and options by keyword")
            return method(self, subject[0], self.defaults.updated(given))

        own = [*signature(method).parameters.values()][:2]
        first = own[1].name
        keywords = signature(declaration).parameters.values()
        shown = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in keywords]
        call.__signature__ = signature(method).replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


takes_options = _taking(GenerationOptions)
"""Decorator of a method whose last argument is `GenerationOptions`: callers pass them as keywords.

Type checkers and editors see every option with its type.
"""
