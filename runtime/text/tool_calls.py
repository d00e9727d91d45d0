"""Tool calls: what a model may call, and the form in which it writes a call.

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
from ..sampling.json_schema import followed, moved

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
    return Tool(name, {"type": "object", **schema}, bool(function.get("strict")))


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


def optional_grammar(
    tools: Sequence[Tool],
    form: ToolFormat,
    *,
    parallel: bool = True,
    answer: Mapping[str, Any] | None = None,
) -> str:
    """Return a Lark grammar for an output that calls tools with valid arguments, or does not.

    Args:
        tools: may be called.
        form: how the model writes calls.
        parallel: allow several calls.
        answer: JSON schema of an output without calls; None for free text, also before and after calls.
    """
    calls = forced_grammar(tools, form, parallel=parallel).replace("start:", "calls:", 1)
    if answer is not None and not form.begin:
        return f"start: %json {json.dumps(_call_or_answer(tools, form, answer, parallel=parallel))}"
    if answer is not None:
        return f"start: calls | answer\nanswer: %json {json.dumps(followed(answer))}\n{calls}"
    if not form.begin:
        return f"start: calls | PLAIN\nPLAIN: /([^{{\\[ \\t\\n](.|\\n)*)?/\n{calls}"
    mark, rest = form.begin.rstrip(), form.begin[len(form.begin.rstrip()) :]
    rules = _call_rules(tools, ToolFormat(form.name, form.arguments, rest, form.end))
    start = "(marked call)* PLAIN" if parallel else "marked call | PLAIN"
    return f"start: {start}\nmarked[lazy]: PLAIN {_text(mark)}\nPLAIN: /(.|\\n)*/\n{rules}"


def _call_or_answer(
    tools: Sequence[Tool], form: ToolFormat, answer: Mapping[str, Any], *, parallel: bool
) -> dict[str, Any]:
    """Return the JSON schema of an output that is a call or an answer, if both are plain JSON."""
    listed = bool(form.around[0])
    place = "#/anyOf/1/items/anyOf" if listed else "#/anyOf/1/anyOf"
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                form.arguments: moved(tool.parameters, f"{place}/{i}/properties/{form.arguments}"),
            },
            "required": ["name", form.arguments],
        }
        for i, tool in enumerate(tools)
    ]
    call: dict[str, Any] = {"anyOf": calls}
    if listed:
        call = {"type": "array", "items": call, "minItems": 1}
        call |= {} if parallel else {"maxItems": 1}
    spacing = {key: value for key, value in answer.items() if key == "x-guidance"}
    inner = {key: value for key, value in answer.items() if key not in spacing}
    return followed({**spacing, "anyOf": [moved(inner, "#/anyOf/0"), call]})


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
