"""The manifest's schema, its seal, and what a hostile cospec.json can do (nothing)."""

from __future__ import annotations

import json

import pytest
from example_manifest import MANIFEST, canonical, changed, make_model, sealed
from msgspec.structs import replace

from cospec.errors import BundleError
from cospec.runtime.bundle.manifest import (
    SCHEMA_VERSION,
    EnginesEntry,
    Models,
    from_json,
    to_json,
)


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


def test_a_newer_schema_says_upgrade_before_it_complains_of_unknown_keys():
    raw = {**json.loads(to_json(MANIFEST)), "schema_version": SCHEMA_VERSION + 1, "surprise": 1}
    for data in (sealed(raw), canonical(raw)):
        with pytest.raises(BundleError, match="newer cospec") as caught:
            from_json(data)
        assert "upgrade" in caught.value.hint


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
