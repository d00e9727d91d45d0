"""Manifests that were damaged, edited or written to harm."""

from __future__ import annotations

import copy
import json
import time

import pytest
from example_manifest import MANIFEST, changed, sealed
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cospec.errors import BundleError
from cospec.runtime.bundle.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    from_json,
    to_json,
)


def test_a_flip_of_any_bit_of_any_byte_is_refused():
    data = to_json(MANIFEST)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(BundleError):
            from_json(bytes(flipped))


def test_any_truncation_and_any_addition_is_refused():
    data = to_json(MANIFEST)
    for length in range(0, len(data), 7):
        with pytest.raises(BundleError):
            from_json(data[:length])
    for addition in (b" ", b"\n", b"\0", b"{}"):
        with pytest.raises(BundleError):
            from_json(data + addition)


def test_other_layout_of_the_same_values_is_refused():
    with pytest.raises(BundleError, match="layout was changed"):
        from_json(json.dumps(json.loads(to_json(MANIFEST))).encode())


def test_an_edit_by_hand_is_called_one():
    with pytest.raises(BundleError, match="seal does not match") as caught:
        from_json(to_json(MANIFEST).replace(b'"capacity": 128', b'"capacity": 256'))
    assert "export it again" in caught.value.hint


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../outside",
        "target/../../outside",
        "./target",
        "target//model.onnx",
        "target/",
        "target\\model.onnx",
        "C:/model.onnx",
        "C:model.onnx",
        "model.onnx\0",
        "model\n.onnx",
        "model.onnx:stream",
        "model.onnx.",
        " model.onnx",
        ".hidden",
        "~/model.onnx",
        "mod\u00e8l.onnx",
        "a" * 241,
    ],
)
def test_paths_that_leave_the_folder_or_mean_different_files_are_refused(path):
    with pytest.raises(BundleError, match=r"files\[0\]\.path"):
        from_json(changed("files.0.path", path))


def test_duplicate_keys_are_refused_at_every_level():
    data = to_json(MANIFEST)
    for original in (b'"capacity": 128', b'"parameters": 1000'):
        doubled = data.replace(original, original + b", " + original, 1)
        with pytest.raises(BundleError, match="appears twice"):
            from_json(doubled)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000])
def test_numbers_outside_json_or_reason_are_refused(number):
    with pytest.raises(BundleError):
        from_json(to_json(MANIFEST).replace(b'"capacity": 128', b'"capacity": ' + number))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{" * 17, "nested deeper"),
        (b"[" * MAX_MANIFEST_BYTES, "nested deeper"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "larger than"),
        (b'"' + b'\\"' * (MAX_MANIFEST_BYTES // 2 - 1), "not valid JSON"),
        (b"{" + b",".join(b'"%x":0' % n for n in range(90_000)) + b',"0":0}', "appears twice"),
    ],
    ids=["empty", "list", "utf-16", "bom", "deep", "deepest", "huge", "open string", "many keys"],
)
def test_hostile_json_is_refused_quickly(data, problem):
    started = time.process_time()
    with pytest.raises(BundleError, match=problem):
        from_json(data)
    assert time.process_time() - started < 5


def test_brackets_inside_strings_do_not_count_as_nesting():
    deep_name = replace(MANIFEST, name='[{"\\' * 20)
    assert from_json(to_json(deep_name)) == deep_name


def test_the_number_of_files_is_capped():
    files = tuple(FileEntry(f"f{number}", 0, "0" * 64) for number in range(MAX_FILES + 1))
    with pytest.raises(BundleError, match="files: expected array of length <= 10000"):
        replace(MANIFEST, files=files)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def _nodes(node: object, path: tuple = ()) -> list[tuple]:
    children = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, child in children:
        found.append((*path, key))
        if isinstance(child, (dict, list)):
            found += _nodes(child, (*path, key))
    return found


RAW = json.loads(to_json(MANIFEST))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_fuzz_random_bytes_only_raise_bundle_error(data):
    with pytest.raises(BundleError):
        from_json(data)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(_nodes(RAW)), JSON_VALUES)
def test_fuzz_mutated_and_resealed_manifests_parse_or_raise_bundle_error(path, value):
    raw = copy.deepcopy(RAW)
    node = raw
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    data = sealed(raw)
    try:
        manifest = from_json(data)
    except BundleError:
        return
    assert to_json(manifest) == data
