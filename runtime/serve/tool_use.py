"""The tools of a request: which may be called, and which must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..text.codec import TextCodec
from ..text.tool_call_reader import ToolCallReader
from ..text.tool_calls import (
    Tool,
    ToolFormat,
    forced_grammar,
    format_of,
    optional_grammar,
    read_tools,
)
from .fields import Fields
from .refusals import RefusedError

CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """The tools that the model may call.

    Attributes:
        schemas: the tools as chat templates take them.
        tools: the same, as they were read.
        forced: tools of which one must be called; empty if the model decides.
        parallel: several calls are allowed.
    """

    schemas: tuple[Mapping[str, Any], ...]
    tools: Sequence[Tool]
    forced: Sequence[Tool]
    parallel: bool

    def grammar(self, form: ToolFormat, answer: Mapping[str, Any] | None) -> str | None:
        """Return the grammar of the output; None leaves it to the model.

        Args:
            form: how the model writes calls.
            answer: JSON schema of an output without calls; None for free text.
        """
        if self.forced:
            return forced_grammar(self.forced, form, parallel=self.parallel)
        if answer is not None or not self.parallel or any(tool.strict for tool in self.tools):
            return optional_grammar(self.tools, form, parallel=self.parallel, answer=answer)
        return None

    def reader(self, form: ToolFormat) -> ToolCallReader:
        """Return what finds calls in the output."""
        return ToolCallReader(self.tools, form)


def form_of(codec: TextCodec, template: str | None) -> ToolFormat:
    """Return the form of calls that a bundle's chat template teaches."""
    return format_of(codec.chat.compiled(template, tools=True).source)


def read_tool_use(fields: Fields) -> ToolUse | None:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`.

    Returns:
        None if there are no tools, or none may be called.

    Raises:
        RefusedError: names the field.
        UsageError: names the tool that cannot be read.
    """
    given = fields.take("tools")
    choice = fields.take("tool_choice")
    parallel = fields.take("parallel_tool_calls", bool)
    tools = read_tools(given or [])
    name = _name_of(choice)
    if name is None and choice not in (None, *CHOICES):
        raise RefusedError(
            f"tool_choice must be one of {', '.join(CHOICES)}, or an object that names a function",
            param="tool_choice",
        )
    forced = [tool for tool in tools if tool.name == name or choice == "required"]
    if (name is not None or choice == "required") and not forced:
        raise RefusedError(
            "tool_choice asks for a call, but tools has no such function", param="tools"
        )
    if not tools or choice == "none":
        return None
    # A named function is called once, as OpenAI does it.
    parallel = parallel is not False and name is None
    return ToolUse(tuple(_schema(each) for each in given), tools, forced, parallel)


def _name_of(choice: Any) -> str | None:
    """Return the function that a tool choice names, in the form of either API."""
    if not isinstance(choice, dict) or choice.get("type") != "function":
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool as templates take it; the Responses API has the function's fields beside `type`."""
    if "function" in tool:
        return tool
    kept = ("name", "description", "parameters")
    return {"type": "function", "function": {key: tool[key] for key in kept if key in tool}}
