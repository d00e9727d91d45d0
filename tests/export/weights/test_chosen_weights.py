"""Exports that quantise: the smallest recipe within the limit, and a graph of its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from click.testing import CliRunner
from gguf_files import random_gguf
from greedy import margins

from cospec.errors import GateError, UsageError
from cospec.export import pipeline
from cospec.export.cli import main
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.export.weights import chosen_weights, quantised_weights
from cospec.export.weights.bit_recipes import Measured
from cospec.export.weights.chosen_weights import QualityLimit
from cospec.export.weights.quantised_weights import quantise
from cospec.export.weights.written_weights import WrittenWeights
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load


def export(checkpoint, output, draft="none", **options):
    chosen = ExportOptions(str(checkpoint), draft=str(draft), capacity=64, **options)
    return export_bundle(chosen, output)


def facts(bundle):
    return json.loads((bundle / "certificate.json").read_text())


def kinds(bundle, role="target"):
    return {
        each.kind: each.tensors
        for each in getattr(Bundle.open(bundle).manifest.models, role).kept_weights
    }


@pytest.fixture
def costs(monkeypatch):
    """Sets what the recipes cost."""

    def these(*rises):
        found = Measured(10.0, list(rises), {})
        monkeypatch.setattr(chosen_weights, "measure", lambda *_: found)

    return these


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_graphs_compute_what_their_numbers_say(
    checkpoint_of, tmp_path, monkeypatch, family, weights
):
    # Few outputs at a time, so that each matrix is put together from several parts.
    monkeypatch.setattr(quantised_weights, "CHUNK", 1000)
    bundle = export(
        checkpoint_of(family, layers=2),
        tmp_path / "bundle",
        weights=weights,
        limit=QualityLimit(float("inf")),
    )
    parity = facts(bundle)["parity"]["target"]
    assert parity["max_relative_error"] < 5e-5
    assert parity["int8_activations"]["same_token"] > 0.8
    found = kinds(bundle)
    assert any(kind.startswith(weights) for kind in found)
    assert facts(bundle)["quantised"]["target"]["chosen"] == weights
    operators = {node.op_type for node in onnx_ir.load(bundle / "target" / "model.onnx").graph}
    assert "MatMul" not in operators


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists what is mapped")
def test_nothing_of_the_written_file_stays_mapped_after_a_matrix_was_read(
    checkpoint_of, tmp_path, monkeypatch
):
    read, mapped = WrittenWeights.__getitem__, []

    def reading(self, name):
        matrix = read(self, name)
        mapped.append(str(tmp_path) in Path("/proc/self/maps").read_text())
        return matrix

    monkeypatch.setattr(WrittenWeights, "__getitem__", reading)
    export(checkpoint_of("llama", layers=1), tmp_path / "bundle", weights="int8")
    assert len(mapped) > 7
    assert not any(mapped)


def test_strict_output_is_the_greedy_output_of_the_quantised_model(checkpoint_of, tmp_path):
    folder = checkpoint_of("llama", layers=2)
    bundle = export(folder, tmp_path / "bundle", weights="int8")
    module = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data = torch.from_numpy(quantise(parameter.numpy(), 8).matrix())
    prompt = list(range(60, 75))
    tokens = load(bundle).continue_tokens(prompt, max_tokens=24).completion().tokens
    found = margins(module, prompt, tokens)
    # A greedy choice but where int8 activations swap two tokens that are nearly as likely.
    assert np.mean(found == 0) > 0.6
    assert max(found) < 0.05


def test_the_smallest_recipe_within_the_limit_is_taken(checkpoint_of, tmp_path, costs):
    folder = checkpoint_of("llama", layers=3)
    costs(0.30, 0.04, 0.001)
    bundle = export(folder, tmp_path / "bundle", weights="int4")
    found = facts(bundle)["quantised"]["target"]
    assert found["chosen"] == "int4 with sensitive matrices in int8"
    assert found["limit"] == 0.05
    assert found["tokens"] > 1000
    assert list(found["perplexity_increase"].values()) == [0.30, 0.04, 0.001]
    assert kinds(bundle) == {
        "int4 (by activations, blocks of 32)": 6,
        "int8 (rounded, blocks of 64)": 14,
    } | {"int8 (rounded, blocks of 32)": 3}


def test_a_target_beyond_the_limit_is_refused_with_the_figures(checkpoint_of, tmp_path, costs):
    costs(0.30, 0.25, 0.2)
    with pytest.raises(GateError, match=r"beyond the limit of 5.0%: int4 \+30.0%; .*int8 \+20.0%"):
        export(checkpoint_of("llama", layers=3), tmp_path / "bundle", weights="int4")
    assert not (tmp_path / "bundle").exists()


def test_a_draft_has_no_limit(checkpoint_of, tmp_path, costs):
    folder = checkpoint_of("llama", layers=1)
    costs(0.30)
    limit = {"weights": "int8", "limit": QualityLimit(0.3)}
    bundle = export(folder, tmp_path / "bundle", draft=folder, **limit)
    assert facts(bundle)["quantised"].keys() == {"target", "draft"}
    costs(0.40)
    with pytest.raises(GateError, match="of the target beyond"):
        export(folder, tmp_path / "other", draft=folder, **limit)


def test_auto_takes_half_precision_beyond_the_limit(checkpoint_of, tmp_path, costs):
    costs(0.30, 0.25, 0.2)
    bundle = export(checkpoint_of("llama", layers=3), tmp_path / "bundle", weights="auto")
    assert facts(bundle)["quantised"]["target"]["chosen"] == "fp16"
    assert kinds(bundle) == {}
    graph = onnx_ir.load(bundle / "target" / "model.onnx").graph
    assert onnx_ir.DataType.FLOAT16 in {each.dtype for each in graph.initializers.values()}


def test_auto_keeps_what_is_quantised_and_graphs_that_read_no_integers(checkpoint_of, tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    assert kinds(export(file, tmp_path / "kept", weights="auto")) == {"Q8_0": 8}
    folder = checkpoint_of("llama", layers=1)
    plain = export(folder, tmp_path / "plain", weights="auto", lowering="portable")
    assert kinds(plain) == {}
    assert "quantised" not in facts(plain)


@pytest.mark.parametrize("form", [{"lowering": "portable"}, {"precision": "fp16"}])
def test_graphs_that_cannot_read_integers_are_refused(checkpoint_of, tmp_path, form):
    with pytest.raises(UsageError, match="cannot read int4 weights"):
        export(checkpoint_of("llama", layers=1), tmp_path / "bundle", weights="int4", **form)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe", "is not UTF-8"), (b"", "holds no text")],
)
def test_texts_that_cannot_be_used(checkpoint_of, tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        export(
            checkpoint_of("llama", layers=1),
            tmp_path / "bundle",
            weights="int4",
            limit=QualityLimit(texts=file),
        )
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("text", "limit"), [("3%", 0.03), ("0.5", 0.5), ("0", 0.0)])
def test_the_command_passes_the_limit_and_the_text_on(monkeypatch, tmp_path, text, limit):
    passed = []

    def export_nothing(options, output, *_):
        passed.append(options)
        raise UsageError("enough")

    monkeypatch.setattr(pipeline, "export_bundle", export_nothing)
    arguments = ["--target", "tiny", "--weights", "auto", "--max-perplexity-increase", text]
    CliRunner().invoke(main, [*arguments, "--texts", str(tmp_path / "t.txt")])
    assert passed[0].weights == "auto"
    assert passed[0].limit == QualityLimit(limit, tmp_path / "t.txt")


@pytest.mark.parametrize("text", ["-1%", "much", "nan", "inf"])
def test_limits_that_are_none(text):
    done = CliRunner().invoke(main, ["--target", "tiny", "--max-perplexity-increase", text])
    assert done.exit_code == 2
    assert "--max-perplexity-increase" in done.output


def test_the_draft_may_have_a_format_of_its_own(checkpoint_of, tmp_path, costs):
    folder = checkpoint_of("llama", layers=1)
    costs(0.9)
    bundle = export(folder, tmp_path / "bundle", folder, weights="fp16", draft_weights="int8")
    assert kinds(bundle) == {}
    assert sum(kinds(bundle, "draft").values()) == 9
    assert facts(bundle)["quantised"].keys() == {"draft"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--trt"], "is for ONNX Runtime"), (["--draft", "none"], "--draft-weights needs a draft")],
)
def test_a_format_of_a_draft_that_cannot_be(tmp_path, arguments, message):
    given = ["--target", "tiny", "--output", str(tmp_path / "new"), "--draft-weights", "int4"]
    done = CliRunner().invoke(main, [*given, *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (tmp_path / "new").exists()
