"""Tool calls: forms of the families, grammars that force them, and reading them from streams."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cospec.errors import UsageError
from cospec.models import tiny_pair
from cospec.runtime.sampling.grammar import GrammarCompiler, GrammarSpec
from cospec.runtime.text.tool_calls import (
    GENERIC,
    HERMES,
    LLAMA3,
    MISTRAL,
    Tool,
    ToolCall,
    ToolCallReader,
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


def read_in_pieces(form: ToolFormat, text: str, seed: int) -> tuple[str, list[ToolCall]]:
    rng, reader = random.Random(seed), ToolCallReader([WEATHER, TIME], form)
    said, calls, at = "", [], 0
    while at < len(text):
        step = rng.randint(1, 7)
        new, found = reader.push(text[at : at + step])
        said, calls, at = said + new, calls + found, at + step
    new, found = reader.finish()
    return said + new, calls + found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_calls_are_read_from_pieces_of_any_length(form, seed):
    text = written(form, ("get_weather", ROME), ("time", "{}"))
    said, calls = read_in_pieces(form, text, seed)
    assert said.strip() == ""
    assert [call.name for call in calls] == ["get_weather", "time"]
    assert [json.loads(call.arguments) for call in calls] == [json.loads(ROME), {}]


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


def test_text_before_a_marked_call_is_kept():
    text = "Let me look. " + written(HERMES, ("time", "{}"))
    assert read_in_pieces(HERMES, text, 1) == ("Let me look. ", [ToolCall("time", "{}")])


def test_a_marked_call_that_the_limit_cut_is_read_if_it_is_whole():
    text = written(HERMES, ("time", "{}")).removesuffix("\n</tool_call>")
    assert read_in_pieces(HERMES, text, 1)[1] == [ToolCall("time", "{}")]
    cut = text[:-3]
    assert read_in_pieces(HERMES, cut, 1) == (cut, [])


def test_arguments_may_be_a_text_that_holds_json():
    text = '{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}'
    assert read_in_pieces(GENERIC, text, 2)[1] == [ToolCall("get_weather", '{"city": "Rome"}')]


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


def test_tools_are_an_option_of_the_library_as_values_or_json():
    from cospec import GenerationOptions
    from cospec.runtime.sampling.declaration import OptionError

    tool = {"type": "function", "function": {"name": "time"}}
    for value in ([tool], json.dumps([tool])):
        assert GenerationOptions(tools=value).tools == (tool,)
    for value, message in (("[", "not JSON"), ([{"type": "x"}], r"tools\[0\]"), (3, "tools")):
        with pytest.raises((UsageError, OptionError), match=message):
            GenerationOptions(tools=value)
