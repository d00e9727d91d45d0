"""JSON from outside: what is accepted, and that every refusal is typed, quick and names the field."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from cospec.errors import BundleError, CheckpointError, UsageError
from cospec.runtime.bundle.json_input import matching, parse_json_object, read_json


class Settings(Struct, forbid_unknown_fields=True):
    threshold: Annotated[float, Meta(ge=0, le=1)]
    mode: Literal["strict", "collab"] = "strict"
    name: Annotated[str, matching(r"^[a-z]+\Z", "lower-case letters")] = "x"
    parts: list[Annotated[int, Meta(ge=1)]] = []


def read(tmp_path, text: str) -> Settings:
    path = tmp_path / "settings.json"
    path.write_text(text)
    return read_json(path, Settings, max_bytes=1000, error=CheckpointError, hint="write it again")


def test_a_file_is_read_as_its_struct(tmp_path):
    assert read(tmp_path, '{"threshold": 0.5, "parts": [1]}') == Settings(0.5, parts=[1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "threshold: missing key"),
        ('{"threshold": 2}', "threshold: expected float <= 1.0"),
        ('{"threshold": "0.5"}', "threshold: expected float, got str"),
        ('{"threshold": true}', "threshold: expected float, got bool"),
        ('{"threshold": 0, "surprise": 1}', "surprise: unknown key"),
        ('{"threshold": 0, "\\u001b": 1}', "\\x1b: unknown key"),
        ('{"threshold": 0, "mode": "magic"}', "mode: invalid enum value 'magic'"),
        ('{"threshold": 0, "name": "A"}', "name: expected lower-case letters"),
        ('{"threshold": 0, "parts": [1, 0]}', "parts[1]: expected int >= 1"),
        ("[]", "not a JSON object"),
        ("nonsense", "not valid JSON"),
        (" " * 1001, "larger than 1000 bytes"),
    ],
)
def test_a_refusal_names_the_file_the_field_and_what_to_do(tmp_path, text, problem):
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "settings.json") in caught.value.message
    assert problem in caught.value.message
    assert caught.value.hint == "write it again"


def test_a_file_that_cannot_be_read_is_refused_the_same_way(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            read_json(path, Settings, max_bytes=10, error=CheckpointError, hint="look")
        assert caught.value.hint == "look"


HOSTILE = {
    "deep lists": (b'{"a": ' + b"[" * 17 + b"]" * 17 + b"}", "nested deeper"),
    "deep objects": (b'{"a": ' * 17 + b"1" + b"}" * 17, "nested deeper"),
    "deepest": (b"[" * (1 << 20), "nested deeper"),
    "unclosed text of quotes": (b'"' + rb"\"" * (1 << 19), "not valid JSON"),
    "many empty texts": (b'""' * (1 << 19), "not valid JSON"),
    "half a surrogate pair": (rb'{"a": "\ud800"}', "not valid JSON .half a surrogate pair"),
    "a long number": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "infinity": (b'{"a": 1e999}', "not valid JSON"),
    "nan": (b'{"a": NaN}', "not valid JSON"),
    "wrong encoding": (b'{"a": "\xff"}', "not valid JSON"),
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
    "a key twice inside": (b'{"a": [{"b": 1}, {"b": 1, "b": 2}]}', "the key 'b' appears twice"),
    "a key twice, spelt differently": (rb'{"a": 1, "\u0061": 2}', "the key 'a' appears twice"),
    "many lists": (b'{"a": [' + b"[]," * 349_000 + b"[]]", "nested deeper"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_refused_quickly(kind):
    data, problem = HOSTILE[kind]
    started = time.process_time()
    with pytest.raises(UsageError, match=problem):
        parse_json_object(data, max_bytes=1 << 21, error=UsageError)
    assert time.process_time() - started < 2


def test_signs_inside_texts_are_text():
    value = {"a:[{": ['"}]:', "\\", "\\\\", '\\"', "[" * 40, {"b": "::"}]}
    assert parse_json_object(json.dumps(value).encode(), max_bytes=1000) == value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), VALUES), st.booleans())
def test_any_object_is_read_as_the_standard_library_reads_it(value, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_json_object(data, max_bytes=1 << 20, max_depth=40) == json.loads(data)


@given(st.binary(max_size=60) | st.text('{}[]":,\\a1 ', max_size=30).map(str.encode))
def test_any_bytes_are_read_or_refused_with_the_type_that_was_asked_for(data):
    try:
        value = parse_json_object(data, max_bytes=1 << 20)
    except BundleError:
        return
    assert value == json.loads(data)
