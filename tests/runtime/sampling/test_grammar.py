"""Grammars: masks against brute force, rollback, forced tokens, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cospec.errors import MissingExtraError, UsageError
from cospec.models import tiny_pair
from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.sampling.declaration import OptionError
from cospec.runtime.sampling.grammar import GrammarCompiler, GrammarSpec

pytest.importorskip("llguidance")
TOKENIZER = (Path(tiny_pair.path("target")) / "tokenizer.json").read_text(encoding="utf-8")
VOCAB, EOS = 512, 2
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"enum": ["kg", "m"]}},
    "required": ["answer", "unit"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(lambda: TOKENIZER, VOCAB + 8, [EOS])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(TOKENIZER)
    return [tokenizer.decode([i], skip_special_tokens=False) for i in range(VOCAB)]


def ids(text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_str(TOKENIZER).encode(text, add_special_tokens=False).ids)


def test_a_mask_allows_the_tokens_that_begin_a_match_and_no_others(compiler, texts):
    mask = compiler.compile(GrammarSpec("regex", "[0-9]{2}x")).allowed()
    begins = re.compile(r"[0-9]|[0-9]{2}|[0-9]{2}x")
    expected = {i for i, text in enumerate(texts) if i > EOS and begins.fullmatch(text)}
    assert set(np.flatnonzero(mask)) == expected
    assert len(mask) == VOCAB + 8


def test_only_an_end_follows_a_complete_text(compiler):
    state = compiler.compile(GrammarSpec("choice", ["12", "13"]))
    assert not state.is_complete
    assert not state.allowed()[EOS]
    state.commit(ids("12"))
    assert state.is_complete
    assert list(np.flatnonzero(state.allowed())) == [EOS]
    state.commit([EOS])
    assert state.is_complete
    assert list(np.flatnonzero(state.allowed())) == [EOS]
    assert state.forced() == []


def test_drafted_tokens_are_tried_and_taken_back_in_any_order(compiler):
    spec = GrammarSpec("json_schema", json.dumps(SCHEMA))
    block = ids('{"answer": 42, "unit": "kg"}')
    paths = [block[:n] for n in (4, 2, 7, 0, 7, 5, len(block), 1)]
    state = compiler.compile(spec)
    for path in paths:
        fresh = compiler.compile(spec)
        fresh.commit(path)
        assert (state.allowed(path) == fresh.allowed()).all()
    state.commit(block[:3])
    other = compiler.compile(spec)
    other.commit(block[:3])
    assert (state.allowed() == other.allowed()).all()
    assert state.count_allowed(block[3:]) == len(block) - 3
    assert state.count_allowed([*block[3:6], *ids("zz")]) == 3
    assert state.count_allowed([VOCAB + 100]) == 0


def test_forced_tokens_spell_the_only_text_that_can_follow(compiler, texts):
    state = compiler.compile(GrammarSpec("json_schema", json.dumps(SCHEMA)))
    forced = state.forced()
    assert '{"answer":'.startswith("".join(texts[i] for i in forced).replace(" ", ""))
    assert forced
    assert state.count_allowed(forced) == len(forced)
    assert state.forced([*forced, EOS]) == []


@pytest.mark.parametrize("kind", ["lark", "gbnf"])
def test_grammars_in_both_notations(compiler, kind):
    value = {"lark": 'start: "a" /[0-9]+/', "gbnf": 'root ::= "a" [0-9]+'}[kind]
    state = compiler.compile(GrammarSpec(kind, value))
    assert state.count_allowed(ids("a12")) == len(ids("a12"))
    state.commit(ids("a1"))
    assert state.is_complete


def test_any_json_object(compiler):
    state = compiler.compile(GrammarSpec("json_schema", '{"type": "object"}'))
    text = ids('{"a": [1, null]}')
    assert state.count_allowed(text) == len(text)
    assert state.count_allowed(ids("[1]")) == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GrammarSpec("json_schema", '{"dependentSchemas": {}}'), "dependentSchemas"),
        (GrammarSpec("json_schema", '{"not": {}}'), "not"),
        (GrammarSpec("json_schema", '{"type": "wrong"}'), "wrong"),
        (GrammarSpec("json_schema", '{"minimum": 5, "maximum": 3, "type": "integer"}'), "5"),
        (GrammarSpec("json_schema", '{"pattern": "(?=a)b", "type": "string"}'), "regex"),
        (GrammarSpec("regex", "("), "regex"),
        (GrammarSpec("regex", " "), "empty"),
        (GrammarSpec("lark", "foo"), "Expected token"),
        (GrammarSpec("gbnf", "x"), "GBNF"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(compiler, spec, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        compiler.compile(spec)


def test_without_an_end_token_there_is_no_grammar():
    with pytest.raises(UsageError, match="ends the output"):
        GrammarCompiler(lambda: TOKENIZER, VOCAB, []).compile(GrammarSpec("regex", "a"))


def test_without_llguidance_the_extra_is_named(compiler, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError) as caught:
        compiler.compile(GrammarSpec("regex", "a"))
    assert "cospec[grammar]" in caught.value.hint


def test_options_name_one_grammar():
    options = GenerationOptions(json_schema={"type": "integer"})
    assert options.grammar_spec == GrammarSpec("json_schema", '{"type": "integer"}')
    assert GenerationOptions(json_schema="true").grammar_spec == GrammarSpec("json_schema", "{}")
    assert GenerationOptions(choice=("a", "b")).grammar_spec == GrammarSpec("choice", ("a", "b"))
    assert GenerationOptions(regex="a+").grammar_spec == GrammarSpec("regex", "a+")
    for text, kind in (('start: "a"', "lark"), ('root ::= "a"', "gbnf")):
        assert GenerationOptions(grammar=text).grammar_spec == GrammarSpec(kind, text)
    assert GenerationOptions().grammar_spec is None
    with pytest.raises(UsageError, match="regex and choice are given"):
        assert GenerationOptions(regex="a", choice=("b",)).grammar_spec


@pytest.mark.parametrize(
    ("name", "value"),
    [("json_schema", "["), ("json_schema", "[]"), ("json_schema", 3), ("grammar", 3), ("regex", 3)],
)
def test_options_of_another_type_are_refused(name, value):
    with pytest.raises(OptionError, match=name):
        GenerationOptions(**{name: value})
