"""Tool calls: forms of the families, grammars that force them, and reading them from streams."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cospec.errors import UsageError
from cospec.models import tiny_pair
from cospec.runtime.sampling.grammar import GrammarCompiler, GrammarSpec
from cospec.runtime.text.tool_call_reader import ToolCallReader
from cospec.runtime.text.tool_calls import (
    GENERIC,
    HERMES,
    LLAMA3,
    MISTRAL,
    Tool,
    ToolFormat,
    forced_grammar,
    format_of,
    optional_grammar,
    read_tools,
)

FORMS = {form.name: form for form in (HERMES, LLAMA3, MISTRAL, GENERIC)}
WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = Tool("time", {"type": "object", "properties": {}, "additionalProperties": False})
ROME = '{"city": "Rome", "days": 2}'


def written(form: ToolFormat, *calls: tuple[str, str]) -> str:
    """Calls as a model of the family writes them."""
    each = [
        f'{form.begin}{{"name": "{name}", "{form.arguments}": {arguments}}}{form.end}'
        for name, arguments in calls
    ]
    return form.around[0] + form.between.join(each) + form.around[1]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>\n{% endif %}", HERMES),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", MISTRAL),
        ('{"name": .., "parameters": ..} <|start_header_id|>ipython', LLAMA3),
        ("{{ tools | tojson }}", GENERIC),
    ],
)
def test_the_form_is_the_templates(template, form):
    assert format_of(template) is form


def read_in_pieces(
    form: ToolFormat, text: str, seed: int
) -> tuple[str, list[tuple[str, str, bool]]]:
    """The text around calls, and of each call its name, its arguments and whether it is whole."""
    rng, reader = random.Random(seed), ToolCallReader([WEATHER, TIME], form)
    said, parts, at = "", [], 0
    while at < len(text):
        step = rng.randint(1, 7)
        new, found = reader.push(text[at : at + step])
        said, parts, at = said + new, parts + found, at + step
    new, found = reader.finish()
    calls: list[tuple[str, str, bool]] = []
    for part in parts + found:
        if part.name is not None:
            assert not calls or calls[-1][2], "a call begins within another"
            calls.append((part.name, part.arguments, part.ended))
        else:
            name, arguments, ended = calls[-1]
            assert not ended, "a call goes on after its end"
            calls[-1] = (name, arguments + part.arguments, part.ended)
    return said + new, calls


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_calls_are_read_from_pieces_of_any_length(form, seed):
    text = written(form, ("get_weather", ROME), ("time", "{}"))
    said, calls = read_in_pieces(form, text, seed)
    assert said.strip() == ""
    assert calls == [("get_weather", ROME, True), ("time", "{}", True)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "text",
    [
        "No call here.",
        'It is {"name": "get_weather"} that one would call.',
        '{"name": "unknown", "arguments": {}}',
        '{"name": "time", "arguments": 3}',
        "[1, 2]",
        '{"a": ',
        "<tool_call>\nnot JSON\n</tool_call>",
        "a < b <tool",
        "",
    ],
)
def test_other_text_is_text_and_nothing_is_lost(form, text, seed):
    assert read_in_pieces(form, text, seed) == (text, [])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_arguments_are_passed_on_as_they_come(form):
    reader = ToolCallReader([WEATHER], form)
    head, tail = written(form, ("get_weather", ROME)).split("me", 2)[0], 'me", "days": 2}'
    head = written(form, ("get_weather", ROME)).split("Ro")[0]
    assert reader.push(head)[1][-1].arguments.endswith('{"city": "')
    (part,) = reader.push("Ro")[1]
    assert (part.name, part.arguments, part.ended) == (None, "Ro", False)
    (part,) = reader.push(tail)[1]
    assert (part.arguments, part.ended) == (tail, True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("arguments", ['{"city": "}]<tool_call>\\"{"}', '{"city": {"a": [{}]}}'])
def test_marks_within_arguments_are_arguments(form, arguments, seed):
    text = written(form, ("get_weather", arguments), ("time", "{}"))
    wanted = [("get_weather", arguments, True), ("time", "{}", True)]
    assert read_in_pieces(form, text, seed) == ("", wanted)


def test_text_before_a_marked_call_is_kept():
    text = "Let me look. " + written(HERMES, ("time", "{}"))
    assert read_in_pieces(HERMES, text, 1) == ("Let me look. ", [("time", "{}", True)])


def test_a_call_without_its_last_mark_ends_at_the_next_call_or_the_end():
    text = written(HERMES, ("time", "{}")).removesuffix("\n</tool_call>")
    assert read_in_pieces(HERMES, text, 1)[1] == [("time", "{}", True)]
    assert read_in_pieces(HERMES, text * 2, 1)[1] == [("time", "{}", True)] * 2


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_call_that_was_cut_off_has_the_arguments_so_far(form):
    text = written(form, ("get_weather", ROME))
    for end in range(text.index('"city') + 1, text.index("2")):
        said, calls = read_in_pieces(form, text[:end], 1)
        begin = text.index('{"city')
        assert (said, calls) == ("", [("get_weather", text[begin:end], False)])
    before = text[: text.index("weather")]
    assert read_in_pieces(form, before, 1) == (before, [])


def test_calls_of_other_shapes_are_read_when_they_are_whole():
    text = '{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}'
    rome = ("get_weather", '{"city": "Rome"}', True)
    assert read_in_pieces(GENERIC, text, 2)[1] == [rome]
    swapped = '{"arguments": {"city": "Rome"}, "name": "get_weather"}'
    assert read_in_pieces(GENERIC, swapped, 2)[1] == [rome]
    marked = f"<tool_call>{swapped}</tool_call>"
    assert read_in_pieces(HERMES, marked, 2)[1] == [rome]


def test_tools_are_read_from_both_apis():
    function = {"name": "time", "description": "d", "parameters": {"type": "object"}}
    chat = read_tools([{"type": "function", "function": {**function, "strict": True}}])
    assert chat == [Tool("time", {"type": "object"}, strict=True)]
    assert read_tools([{"type": "function", **function}]) == [Tool("time", {"type": "object"})]
    assert read_tools([{"type": "function", "function": {"name": "f"}}])[0].parameters


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "must be a list"),
        ([3], r"tools\[0\]"),
        ([{"type": "retrieval"}], r"tools\[0\]"),
        ([{"type": "function", "function": 3}], "function must be"),
        ([{"type": "function", "function": {"name": "a b"}}], "letters"),
        ([{"type": "function", "function": {"name": "f", "parameters": 3}}], "JSON schema"),
        ([{"type": "function", "name": "f"}] * 2, "two tools"),
    ],
)
def test_tools_that_cannot_be_read_are_refused(value, message):
    with pytest.raises(UsageError, match=message):
        read_tools(value)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    pytest.importorskip("llguidance")
    path = Path(tiny_pair.path("target")) / "tokenizer.json"
    return GrammarCompiler(lambda: path.read_text(encoding="utf-8"), 512, [2])


def accepts(compiler: GrammarCompiler, grammar: str, text: str) -> bool:
    """Whether a text as a whole matches a grammar."""
    from tokenizers import Tokenizer

    path = Path(tiny_pair.path("target")) / "tokenizer.json"
    tokens = Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    state = compiler.compile(GrammarSpec("lark", grammar))
    if state.count_allowed(tokens) < len(tokens):
        return False
    state.commit(tokens)
    return state.is_complete


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_forced_call_has_the_families_form_and_valid_arguments(compiler, form):
    one, both = (
        forced_grammar([WEATHER, TIME], form, parallel=parallel) for parallel in (False, True)
    )
    call, two = ("get_weather", ROME), (("get_weather", ROME), ("time", "{}"))
    assert accepts(compiler, one, written(form, call))
    assert not accepts(compiler, one, written(form, *two))
    assert accepts(compiler, both, written(form, *two))
    assert not accepts(compiler, one, written(form, ("get_weather", '{"days": 2}')))
    assert not accepts(compiler, one, written(form, ("unknown", "{}")))
    assert not accepts(compiler, one, "Hello.")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_strict_call_is_valid_and_text_stays_free(compiler, form):
    grammar = optional_grammar([WEATHER, TIME], form)
    assert accepts(compiler, grammar, "It is 12 + 30.")
    assert accepts(compiler, grammar, written(form, ("get_weather", ROME)))
    assert accepts(compiler, grammar, written(form, ("get_weather", ROME), ("time", "{}")))
    assert not accepts(compiler, grammar, written(form, ("get_weather", '{"days": 2}')))
    single = optional_grammar([WEATHER, TIME], form, parallel=False)
    assert accepts(compiler, single, "It is 12 + 30.")
    assert accepts(compiler, single, written(form, ("get_weather", ROME)))
    assert not accepts(compiler, single, written(form, ("time", "{}"), ("time", "{}")))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_output_is_a_call_or_the_answer_that_was_asked_for(compiler, form):
    answer = {"type": "object", "properties": {"ok": {"$ref": "#/$defs/b"}}, "required": ["ok"]}
    answer |= {"$defs": {"b": {"type": "boolean"}}}
    days = {"$ref": "#/$defs/days"}
    plan = Tool("plan", {"properties": {"days": days}, "$defs": {"days": {"type": "integer"}}})
    grammar = optional_grammar([WEATHER, plan, TIME], form, answer=answer)
    assert accepts(compiler, grammar, written(form, ("plan", '{"days": 3}')))
    assert not accepts(compiler, grammar, written(form, ("plan", '{"days": "x"}')))
    assert accepts(compiler, grammar, '{"ok": true}')
    assert accepts(compiler, grammar, written(form, ("get_weather", ROME)))
    assert not accepts(compiler, grammar, '{"ok": 1}')
    assert not accepts(compiler, grammar, "It is 12 + 30.")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_formats_that_nobody_checks_do_not_forbid_a_tool(compiler, form):
    place = {"type": "string", "format": "place", "maxLength": 9}
    tool = Tool("go", {"type": "object", "properties": {"to": place}, "required": ["to"]})
    grammar = forced_grammar([tool], form, parallel=False)
    assert accepts(compiler, grammar, written(form, ("go", '{"to": "Rome"}')))


def test_tools_are_an_option_of_the_library_as_values_or_json():
    from cospec import GenerationOptions
    from cospec.runtime.sampling.declaration import OptionError

    tool = {"type": "function", "function": {"name": "time"}}
    for value in ([tool], json.dumps([tool])):
        assert GenerationOptions(tools=value).tools == (tool,)
    for value, message in (("[", "not JSON"), ([{"type": "x"}], r"tools\[0\]"), (3, "tools")):
        with pytest.raises((UsageError, OptionError), match=message):
            GenerationOptions(tools=value)
