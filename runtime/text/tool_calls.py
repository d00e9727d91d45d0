"""Tool calls: what a model may call, the form in which it writes a call, and reading calls from text.

The prompt with the tools comes from the model's own chat template. The form of a call is recognised by
the same template: each family was trained on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError
from ..sampling.json_schema import followed

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: of the function.
        parameters: JSON schema of its arguments, an object.
        strict: its arguments must match the schema even if the call is the model's own choice.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote.

    Attributes:
        name: of the function.
        arguments: as JSON text.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """The form in which a family of models writes calls.

    Attributes:
        name: `hermes` (Qwen too), `llama3`, `mistral` or `json`.
        arguments: key of the arguments beside `name`.
        begin: text before each call.
        end: text after each call.
        between: text between two calls.
        around: text before the first and after the last call.
    """

    name: str
    arguments: str = "arguments"
    begin: str = ""
    end: str = ""
    between: str = "\n"
    around: tuple[str, str] = ("", "")


HERMES = ToolFormat("hermes", begin="<tool_call>\n", end="\n</tool_call>")
LLAMA3 = ToolFormat("llama3", arguments="parameters", between="; ")
MISTRAL = ToolFormat("mistral", around=("[", "]"), between=", ")
GENERIC = ToolFormat("json")


def format_of(template: str) -> ToolFormat:
    """Return the form of calls that a chat template teaches."""
    if "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "parameters" in template and ("ipython" in template or "<|python_tag|>" in template):
        return LLAMA3
    return GENERIC


def tools_from(value: str | Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return tools, given as JSON text or as values, as values that were checked.

    Raises:
        UsageError: they are not a JSON list of functions.
    """
    tools: Any = value
    if isinstance(value, str):
        try:
            tools = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"tools are not JSON: {error}") from error
    read_tools(tools)
    return tuple(tools)


def read_tools(value: Any) -> list[Tool]:
    """Return the tools of a request in OpenAI's form.

    Raises:
        UsageError: names the entry that cannot be read.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UsageError("tools must be a list")
    tools = [_read_tool(each, f"tools[{i}]") for i, each in enumerate(value)]
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools have the name '{name}'")
    return tools


def _read_tool(value: Any, where: str) -> Tool:
    if not isinstance(value, Mapping) or value.get("type") != "function":
        raise UsageError(f"{where} must be an object with type 'function'")
    function = value.get("function", value)  # the Responses API has the fields beside `type`
    if not isinstance(function, Mapping):
        raise UsageError(f"{where}.function must be an object")
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"{where}: the name must have 1 to 64 letters, digits, '_', '-' or '.'")
    if schema is None:
        schema = {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        raise UsageError(f"{where}: parameters must be a JSON schema")
    return Tool(name, schema, bool(function.get("strict")))


def forced_grammar(tools: Sequence[Tool], form: ToolFormat, *, parallel: bool) -> str:
    """Return a Lark grammar for an output that is one call of a tool, or several.

    Args:
        tools: any of them may be called; at least one.
        form: how the model writes calls.
        parallel: allow several calls.
    """
    more = f" ({_text(form.between)} call)*" if parallel else ""
    before, after = (_text(text) for text in form.around)
    return f"start: {before} call{more} {after}\n{_call_rules(tools, form)}"


def optional_grammar(tools: Sequence[Tool], form: ToolFormat) -> str:
    """Return a Lark grammar for free text in which every call has valid arguments."""
    if not form.begin:
        calls = forced_grammar(tools, form, parallel=True).replace("start:", "calls:", 1)
        return f"start: calls | PLAIN\nPLAIN: /([^{{\\[ \\t\\n](.|\\n)*)?/\n{calls}"
    mark, rest = form.begin.rstrip(), form.begin[len(form.begin.rstrip()) :]
    rules = _call_rules(tools, ToolFormat(form.name, form.arguments, rest, form.end))
    return (
        f"start: (marked call)* PLAIN\nmarked[lazy]: PLAIN {_text(mark)}\n"
        f"PLAIN: /(.|\\n)*/\n{rules}"
    )


def _call_rules(tools: Sequence[Tool], form: ToolFormat) -> str:
    """Return the rule `call` and one rule for each tool."""
    lines = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        head = f'{form.begin}{{"name": {json.dumps(tool.name)}, "{form.arguments}": '
        lines.append(
            f"call_{i}: {_text(head)} arguments_{i} {_text('}' + form.end)}\n"
            f"arguments_{i}: %json {json.dumps(followed(tool.parameters))}"
        )
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return json.dumps(text) if text else ""


class ToolCallReader:
    """Splits a growing output into text and calls.

    Text is passed on as it comes. From where a call may begin, the output is held back until it is
    certain whether it is one.

    Args:
        tools: only their names are calls; other JSON is text.
        form: how the model writes calls.
    """

    def __init__(self, tools: Sequence[Tool], form: ToolFormat) -> None:
        self._names = {tool.name for tool in tools}
        self._form = form
        self._mark = form.begin.strip()
        self._held = ""
        self._begun = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add text; return the text and the calls that are certain now."""
        self._held += text
        return self._tagged(final=False) if self._mark else self._bare(final=False)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what is left at the end of the output."""
        return self._tagged(final=True) if self._mark else self._bare(final=True)

    def _tagged(self, *, final: bool) -> tuple[str, list[ToolCall]]:
        """Read calls between the form's marks."""
        said, calls, close = "", [], self._form.end.strip()
        while True:
            start = self._held.find(self._mark)
            if start < 0:
                keep = 0 if final else _overlap(self._held, self._mark)
                said += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                break
            stop = self._held.find(close, start)
            if stop < 0 and not final:
                said, self._held = said + self._held[:start], self._held[start:]
                break
            inner = self._held[start + len(self._mark) : stop if stop >= 0 else None]
            found = self._calls_in(inner)
            after = stop + len(close) if stop >= 0 else len(self._held)
            said += self._held[:start] if found else self._held[:after]
            calls += found
            self._held = self._held[after:]
        if calls or self._begun:
            self._begun = True
            said = said if said.strip() else ""  # white space between calls is no answer
        return said, calls

    def _bare(self, *, final: bool) -> tuple[str, list[ToolCall]]:
        """Read an output that is JSON as a whole."""
        if not self._begun and self._held.lstrip()[:1] in ("{", "[", ""):
            if not final:
                return "", []
            calls = self._calls_in(self._held)
            said, self._held = "" if calls else self._held, ""
            return said, calls
        self._begun = True
        said, self._held = self._held, ""
        return said, []

    def _calls_in(self, text: str) -> list[ToolCall]:
        """Return the calls that a text consists of; none if anything else is in it."""
        decoder, at, found = json.JSONDecoder(), 0, []
        while (at := _skip(text, at)) < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                return []
            found += value if isinstance(value, list) else [value]
        calls = [self._call(each) for each in found]
        return [call for call in calls if call is not None] if None not in calls else []

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            return ToolCall(value["name"], arguments)
        if not isinstance(arguments, dict):
            return None
        return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _skip(text: str, at: int) -> int:
    """Return the next position that is neither white space nor a separator of calls."""
    while at < len(text) and (text[at].isspace() or text[at] in ";,"):
        at += 1
    return at


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of `text` may begin `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
