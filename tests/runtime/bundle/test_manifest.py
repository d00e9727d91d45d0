"""The manifest's schema, its seal, and what a hostile cospec.json can do (nothing)."""

from __future__ import annotations

import copy
import hashlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cospec.errors import BundleError
from cospec.runtime.bundle.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SCHEMA_VERSION,
    EnginesEntry,
    FileEntry,
    GenerationDefaults,
    Manifest,
    ModelEntry,
    Models,
    from_json,
    to_json,
)


def make_model(role: str) -> ModelEntry:
    return ModelEntry(
        graph=f"{role}/model.onnx",
        source=f"some-org/{role}",
        architecture="LlamaForCausalLM",
        parameters=1_000,
        hidden_size=16,
        kv_shapes=((2, 8), (1, 4)),
        cache_dtype="float32",
    )


PATHS = ("target/model.onnx", "draft/model.onnx", "tokenizer.json", "chat_template.jinja")
MANIFEST = Manifest(
    name="tiny é",
    created_by={"cospec": "0.1.0", "torch": "2.9.1"},
    lowering="gqa",
    precision="fp32",
    capacity=128,
    vocab_size=300,
    summary_top=4,
    models=Models(make_model("target"), make_model("draft")),
    generation=GenerationDefaults(
        bos_token_id=None, eos_token_ids=(1, 2), num_draft_tokens=4, max_tokens=64, prefill_chunk=32
    ),
    tokenizer="tokenizer.json",
    chat_template="chat_template.jinja",
    files=tuple(FileEntry(path, 5, hashlib.sha256(b"bytes").hexdigest()) for path in PATHS),
)


def canonical(raw: dict) -> bytes:
    return (json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def sealed(raw: dict) -> bytes:
    """`raw` as an attacker who knows the format would write it: with a seal that matches."""
    body = {key: value for key, value in raw.items() if key != "seal"}
    return canonical({**body, "seal": hashlib.sha256(canonical(body)).hexdigest()})


def changed(path: str, value: object) -> bytes:
    raw = json.loads(to_json(MANIFEST))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = raw
    for part in parents:
        node = node[part]
    node[last] = value
    return sealed(raw)


def test_round_trip_keeps_every_value_and_the_bytes():
    data = to_json(MANIFEST)
    assert from_json(data) == MANIFEST
    assert to_json(from_json(data)) == data
    assert json.loads(data)["seal"] == MANIFEST.seal


def test_round_trip_without_the_optional_parts():
    small = replace(
        MANIFEST, models=Models(make_model("target")), chat_template=None, certificate=None
    )
    assert from_json(to_json(small)) == small


def test_seal_depends_on_every_file_hash_and_not_on_key_order():
    other = replace(MANIFEST.files[0], sha256="0" * 64)
    assert replace(MANIFEST, files=(other, *MANIFEST.files[1:])).seal != MANIFEST.seal
    reordered = dict(reversed(MANIFEST.created_by.items()))
    assert replace(MANIFEST, created_by=reordered).seal == MANIFEST.seal


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
    ("path", "value", "where"),
    [
        ("surprise", 1, "surprise: unknown key"),
        ("models.target.surprise", 1, "models.target.surprise: unknown key"),
        ("files.0.mode", 1, "files[0].mode: unknown key"),
        ("schema_version", 0, "schema_version: expected int >= 1"),
        ("schema_version", "1", "schema_version: expected int"),
        ("schema_version", True, "schema_version: expected int"),
        ("name", "", "name: expected str of length >= 1"),
        ("name", "x" * 257, "name: expected str of length <= 256"),
        ("name", "bell\a", "name: expected characters that can be printed"),
        ("name", "\ud800", "not valid JSON"),
        ("name", "\u202e", "name: expected characters that can be printed"),
        ("name", "line\n", "name: expected characters that can be printed"),
        ("name", None, "name: expected str, got null"),
        ("created_by", {}, "created_by: expected object of length >= 1"),
        ("created_by", [], "created_by: expected object"),
        ("created_by", {"torch": 2}, "created_by[...]: expected str"),
        ("lowering", "magic", "lowering: invalid enum value 'magic'"),
        ("precision", ["fp32"], "precision: expected str, got array"),
        ("capacity", 0, "capacity: expected int >= 1"),
        ("capacity", 128.0, "capacity: expected int"),
        ("capacity", True, "capacity: expected int"),
        ("capacity", 1 << 40, "capacity: expected int <= 16777216"),
        ("vocab_size", -1, "vocab_size: expected int >= 1"),
        ("summary_top", 301, "summary_top: expected int from 1 to 300, found 301"),
        ("models", [], "models: expected object"),
        ("models.target", None, "models.target: expected object"),
        ("models.target.graph", "../model.onnx", "models.target.graph"),
        ("models.target.graph", "target/other.onnx", "not among the bundle's files"),
        ("models.target.graph", "target/model.ort", "target.graph: expected a path inside the"),
        ("models.target.graph", "tokenizer.json", "a path inside the bundle that ends with .onnx"),
        ("models.target.kv_shapes", [], "models.target.kv_shapes: expected array of length >= 1"),
        (
            "models.target.kv_shapes",
            [[1, 2, 3]],
            "models.target.kv_shapes[0]: expected array of length 2, got 3",
        ),
        ("models.target.kv_shapes", [[1, 0]], "models.target.kv_shapes[0][1]: expected int >= 1"),
        ("models.draft.cache_dtype", "int8", "models.draft.cache_dtype: invalid enum value 'int8'"),
        ("generation.eos_token_ids", [300], "not below vocab_size 300"),
        ("generation.bos_token_id", 300, "not below vocab_size 300"),
        ("generation.bos_token_id", -1, "generation.bos_token_id: expected int >= 0"),
        (
            "generation.max_tokens",
            129,
            "generation.max_tokens: expected int from 0 to 128, found 129",
        ),
        ("generation.prefill_chunk", 129, "generation.prefill_chunk"),
        ("generation.num_draft_tokens", 257, "generation.num_draft_tokens"),
        ("tokenizer", "other.json", "not among the bundle's files"),
        ("certificate", "certificate.json", "not among the bundle's files"),
        ("files", {}, "files: expected array"),
        ("files", [], "not among the bundle's files"),
        ("files.0", "target/model.onnx", "files[0]: expected object"),
        ("files.0.size", -1, "files[0].size: expected int >= 0"),
        ("files.0.sha256", "0" * 63, "files[0].sha256"),
        ("files.0.sha256", "A" * 64, "files[0].sha256"),
        ("files.0.path", "TOKENIZER.json", "is listed twice"),
        ("files.0.path", "cospec.json", "can never be one"),
        ("files.0.path", "Engines/x.plan", "can never be one"),
    ],
)
def test_each_violation_of_the_schema_is_named(path, value, where):
    with pytest.raises(BundleError) as caught:
        from_json(changed(path, value))
    assert where in caught.value.message
    assert caught.value.message.startswith("cospec.json: ")
    assert caught.value.hint


@pytest.mark.parametrize("path", ["seal", "name", "models.draft", "generation.max_tokens"])
def test_a_missing_key_is_refused(path):
    raw = json.loads(to_json(MANIFEST))
    *parents, last = path.split(".")
    node = raw
    for part in parents:
        node = node[part]
    del node[last]
    data = canonical(raw) if last == "seal" else sealed(raw)
    with pytest.raises(BundleError, match=r"missing key|seal does not match|layout was changed"):
        from_json(data)


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


def test_a_newer_schema_says_upgrade_before_it_complains_of_unknown_keys():
    raw = {**json.loads(to_json(MANIFEST)), "schema_version": SCHEMA_VERSION + 1, "surprise": 1}
    for data in (sealed(raw), canonical(raw)):
        with pytest.raises(BundleError, match="newer cospec") as caught:
            from_json(data)
        assert "upgrade" in caught.value.hint


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


def test_python_values_are_checked_like_json_values():
    with pytest.raises(BundleError, match="capacity"):
        replace(MANIFEST, capacity="128")
    with pytest.raises(BundleError, match="graph"):
        replace(make_model("target"), graph="/model.onnx")
    assert replace(make_model("target"), kv_shapes=[[1, 2]]).kv_shapes == ((1, 2),)


def test_an_incomplete_manifest_can_be_made_but_not_written():
    with pytest.raises(BundleError, match=r"target/model\.onnx.*not among"):
        to_json(replace(MANIFEST, files=()))


def test_cache_bytes_counts_keys_and_values_of_all_layers():
    model = make_model("target")
    assert model.cache_bytes(128) == 2 * 128 * (2 * 8 + 1 * 4) * 4
    assert replace(model, cache_dtype="float16").cache_bytes(128) * 2 == model.cache_bytes(128)


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


def test_a_manifest_without_engines_is_written_as_before_there_were_any():
    written = json.loads(to_json(MANIFEST))
    assert "engines" not in written
    assert from_json(to_json(MANIFEST)) == MANIFEST
    assert written["seal"] == MANIFEST.seal


def test_engines_to_be_built_are_part_of_the_seal():
    entry = EnginesEntry(device="thor-jp7.2", flavour="tensorrt", trt_version="10.16", sm=110)
    marked = replace(MANIFEST, engines=entry)
    assert from_json(to_json(marked)).engines == entry
    assert marked.seal != MANIFEST.seal


@pytest.mark.parametrize("wrong", [{"sm": 7}, {"flavour": "onnx"}, {"device": ""}])
def test_an_engines_entry_is_checked(wrong):
    right = {"device": "thor-jp7.2", "flavour": "tensorrt", "trt_version": "10.16", "sm": 110}
    with pytest.raises(BundleError):
        EnginesEntry(**{**right, **wrong})
