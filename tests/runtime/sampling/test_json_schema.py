"""What the output follows of a JSON schema: all of it, and only as much freedom as it needs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cospec.errors import UsageError
from cospec.models import tiny_pair
from cospec.runtime.sampling.declaration import OptionError
from cospec.runtime.sampling.grammar import GrammarCompiler, GrammarSpec, GrammarState
from cospec.runtime.sampling.json_schema import FORMATS, followed, schema_text

jsonschema = pytest.importorskip("jsonschema")
llguidance = pytest.importorskip("llguidance")
TOKENIZER = (Path(tiny_pair.path("target")) / "tokenizer.json").read_text(encoding="utf-8")
EOS = 2
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
LETTER = {"type": "string", "maxLength": 2}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(lambda: TOKENIZER, 512, [EOS])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(TOKENIZER)


def compiled(compiler: GrammarCompiler, schema: Any) -> GrammarState:
    return compiler.compile(GrammarSpec("json_schema", schema_text(schema)))


def fits(state: GrammarState, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the whole text is allowed, and an end after it."""
    tokens = [*tokenizer.encode(text, add_special_tokens=False).ids, EOS]
    return state.count_allowed(tokens) == len(tokens)


OBJECT = {"type": "object", "properties": {"a": DIGIT, "b": LETTER}, "required": ["a"]}
SCHEMAS: dict[str, Any] = {
    "an object": OBJECT,
    "more properties": {**OBJECT, "additionalProperties": DIGIT},
    "a required property that is not listed": {**OBJECT, "required": ["a", "c"]},
    "at least three properties": {**OBJECT, "required": ["a", "b"], "minProperties": 3},
    "nested": {"properties": {"in": OBJECT, "list": {"items": OBJECT, "maxItems": 2}}},
    "one of two objects": {
        "anyOf": [OBJECT, {"type": "object", "properties": {"c": LETTER}, "required": ["c"]}]
    },
    "objects under a common condition": {
        "anyOf": [OBJECT, {"type": "object", "properties": {"c": LETTER}}],
        "required": ["c"],
    },
    "all of two objects": {"allOf": [OBJECT, {"properties": {"c": DIGIT}, "required": ["c"]}]},
    "a reference": {"$ref": "#/$defs/o", "$defs": {"o": OBJECT}},
    "a reference and more": {
        "$ref": "#/$defs/o",
        "$defs": {"o": OBJECT},
        "properties": {"c": DIGIT},
        "required": ["c"],
    },
    "recursion": {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}, "v": DIGIT}}},
    },
    "exclusive constants": {"oneOf": [{"const": 1}, {"const": "1"}, {"enum": [2, 3]}]},
    "exclusive types": {"oneOf": [DIGIT, LETTER, OBJECT, {"type": ["null", "boolean"]}]},
    "objects with a tag": {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {
            "cat": {
                "type": "object",
                "properties": {"kind": {"const": "cat"}, "lives": DIGIT},
                "required": ["kind"],
            },
            "dog": {
                "type": "object",
                "properties": {"kind": {"enum": ["dog", "puppy"]}, "name": LETTER},
                "required": ["kind"],
            },
        },
    },
    "a format that nobody checks": {"type": "string", "format": "sha1", "maxLength": 2},
    "a property named format": {
        "type": "object",
        "properties": {"format": {"const": "sha1"}, "properties": {"const": 1}},
        "required": ["format", "properties"],
    },
    "a constant that looks like a schema": {"const": {"format": "sha1", "properties": {}}},
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", range(8))
def test_random_outputs_are_valid_by_the_given_schema(compiler, tokenizer, name, seed):
    schema, rng = SCHEMAS[name], random.Random(seed)
    state, tokens = compiled(compiler, schema), []
    closing = {token for text in '}]"' for token in tokenizer.encode(text).ids}
    while not state.allowed()[EOS]:
        allowed = np.flatnonzero(state.allowed())
        # An end of a text, list or object is preferred, or texts would be long.
        ends = [int(token) for token in allowed if token in closing]
        tokens.append(rng.choice(ends if ends and rng.random() < 0.5 else allowed.tolist()))
        state.commit(tokens[-1:])
        assert len(tokens) < 5_000
    value = json.loads(tokenizer.decode(tokens, skip_special_tokens=False))
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("name", ["an object", "a reference", "nested", "one of two objects"])
def test_an_object_has_no_properties_but_those_listed(compiler, tokenizer, name):
    inner = '{"a": 1, "x": 2}' if name != "nested" else '{"in": {"a": 1, "x": 2}}'
    assert not fits(compiled(compiler, SCHEMAS[name]), tokenizer, inner)
    assert fits(compiled(compiler, SCHEMAS[name]), tokenizer, inner.replace(', "x": 2', ""))


def test_a_schema_opens_its_objects_and_sets_its_white_space(compiler, tokenizer):
    opened = compiled(compiler, {**OBJECT, "additionalProperties": True})
    assert fits(opened, tokenizer, '{"a": 1, "x": 2}')
    assert not fits(opened, tokenizer, '{"a":1}')
    spaced = compiled(compiler, {**OBJECT, "x-guidance": {"whitespace_pattern": " {0,2}"}})
    assert all(fits(spaced, tokenizer, text) for text in ('{"a":1}', '{ "a"  :  1 }'))


def test_the_formats_that_llguidance_enforces_are_kept(compiler, tokenizer):
    standard = (
        "date-time time date duration email idn-email hostname idn-hostname ipv4 ipv6 uri uuid iri "
        "regex uri-reference iri-reference uri-template json-pointer relative-json-pointer unknown"
    )
    enforced = set()
    for name in standard.split():
        text = json.dumps({"type": "string", "format": name})
        source = llguidance.LLMatcher.grammar_from_json_schema(text)
        if not llguidance.LLMatcher.validate_grammar(source):
            enforced.add(name)
    assert enforced == FORMATS
    assert not fits(compiled(compiler, {"type": "string", "format": "date"}), tokenizer, '"x"')
    assert fits(compiled(compiler, {"type": "string", "format": "sha1"}), tokenizer, '"x"')


@pytest.mark.parametrize(
    "branches",
    [
        [DIGIT, {"type": "number"}],
        [{"const": 1}, {"enum": [1, 2]}],
        [{"const": 1}, {"const": 1.0}],
        [OBJECT, {"type": "object", "properties": {"c": DIGIT}, "required": ["c"]}],
        [{"properties": {"k": {"const": value}}} for value in "ab"],
        [{"$ref": "#/$defs/x"}, {"$ref": "https://example.org/y"}],
        [{"$ref": "#/$defs/loop"}, {"type": "string"}],
    ],
)
def test_one_of_schemas_that_may_overlap_is_left_as_it_is(branches):
    schema = {"oneOf": branches, "$defs": {"loop": {"$ref": "#/$defs/loop"}}}
    assert followed(schema)["oneOf"] == branches


KEYWORDS = (
    "$defs $ref additionalProperties allOf anyOf const enum format items oneOf properties required "
    "type"
)
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["a", "object", "#/a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYWORDS.split(), "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYWORDS.split()), ANY, max_size=5))
def test_any_json_is_a_grammar_or_refused(compiler, schema):
    try:
        is_typed = bool(compiled(compiler, schema).allowed().any())
    except UsageError as error:
        is_typed = "JSON schema" in str(error) or "no text matches" in str(error)
    assert is_typed


def test_a_schema_that_no_finite_text_can_meet_is_refused(compiler):
    both = {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}, "c": {}}}
    schema = {"$ref": "#/$defs/b", "$defs": {"b": {**both, "required": ["a"]}}}
    with pytest.raises(UsageError, match="a text without end"):
        compiled(compiler, schema)
    later = {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}], "$defs": schema["$defs"]}
    state = compiled(compiler, later)
    assert fits(state, Tokenizer.from_str(TOKENIZER), "null")
    state.commit(Tokenizer.from_str(TOKENIZER).encode("{", add_special_tokens=False).ids)
    with pytest.raises(UsageError, match="a text without end"):
        state.forced()


def test_values_of_a_schema_stay_as_they_are():
    kept = {"format": "sha1", "properties": {"a": {}}}
    schema = {"default": kept, "enum": [kept], "const": kept, "examples": [kept]}
    assert {key: followed(schema)[key] for key in schema} == schema


def test_schemas_that_are_nested_too_deeply_are_refused(compiler):
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="recursion limit"):
        compiled(compiler, deep)
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(OptionError, match="nested too deeply"):
        schema_text(deep)
    with pytest.raises(OptionError, match="not JSON"):
        schema_text('{"items": ' * 100_000)
