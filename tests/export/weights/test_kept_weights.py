"""Exports of quantised files: graphs compute what transformers does, in fewer bytes."""

from __future__ import annotations

import json
import resource

import numpy as np
import onnx
import pytest
import torch
from gguf_files import byte_level, random_gguf
from greedy import margins

from cospec.errors import CheckpointError, CospecError, GateError, ResourceError
from cospec.export import decoder_export
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle.manifest import KeptWeights
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load

ROWS = len(byte_level()) + 3
"""Of the embedding: the tokens of `random_gguf`."""


def export(file, output, **options):
    chosen = ExportOptions(str(file), draft="none", capacity=64, **options)
    return export_bundle(chosen, output)


def left_in(folder):
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


def certificate(bundle):
    return json.loads((bundle / "certificate.json").read_text())


def kept(bundle):
    return Bundle.open(bundle).manifest.models.target.kept_weights


def graph(bundle):
    return onnx.load(bundle / "target" / "model.onnx", load_external_data=False)


def test_a_tied_file_passes_the_gate_exactly_and_is_stored_once(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    bundle = export(file, tmp_path / "bundle")
    facts = certificate(bundle)
    parity = facts["parity"]["target"]
    assert parity["max_relative_error"] < 5e-5
    in_int8 = parity["int8_activations"]
    assert 1e-4 < in_int8["median_relative_error"] <= in_int8["max_relative_error"] < 0.1
    assert in_int8["same_token"] > 0.8
    matrices = ROWS * 256 + 256 * (256 + 128 + 128 + 256 + 3 * 512)
    assert kept(bundle) == (
        KeptWeights(kind="Q8_0", tensors=8, weights=matrices, bits_per_weight=8.5, max_error=0.0),
    )
    files = {path.name: path.stat().st_size for path in (bundle / "target").iterdir()}
    assert files.keys() == {"model.onnx", "model.onnx.data"}
    assert files["model.onnx.data"] == pytest.approx(8.5 / 8 * matrices, rel=0.02)
    operators = {node.op_type for node in graph(bundle).graph.node}
    assert "MatMulNBits" in operators
    assert "MatMul" not in operators


def test_strict_output_is_the_greedy_output_of_the_dequantised_model(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", mixed, architecture="qwen2", is_tied=False)
    bundle = export(file, tmp_path / "bundle")
    module = load_module(open_checkpoint(resolve(str(file))), torch.float32)
    prompt = list(range(60, 75))
    tokens = load(bundle).continue_tokens(prompt, max_tokens=24).completion().tokens
    found = margins(module, prompt, tokens)
    # A greedy choice but where int8 activations swap two tokens that are nearly as likely.
    assert np.mean(found == 0) > 0.8
    assert max(found) < 0.05


def mixed(name: str) -> str:
    """As Q4_K_M mixes kinds: products of the same activations are of several."""
    if name.endswith(("attn_v", "ffn_down")):
        return "Q6_K"
    return {"token_embd": "Q5_0", "output": "Q8_0"}.get(name, "Q4_K")


def test_mixed_kinds_pass_the_gate_and_products_of_one_kind_are_one(tmp_path):
    file = random_gguf(
        tmp_path / "m.gguf", lambda name: "F16" if "output" in name else mixed(name), layers=1
    )
    bundle = export(file, tmp_path / "bundle", weights="exact")
    facts = certificate(bundle)
    assert facts["parity"]["target"]["max_relative_error"] < 5e-5
    tensors = {each.kind: each.tensors for each in kept(bundle)}
    assert tensors == {"Q4_K": 4, "Q6_K": 2, "Q5_0": 1}
    products = [node for node in graph(bundle).graph.node if node.op_type == "MatMulNBits"]
    widths = [next(a.i for a in node.attribute if a.name == "N") for node in products]
    # q with k, v, gate with up, down, head; attn_output is stored in half precision
    assert sorted(widths) == sorted([256 + 128, 128, 512 + 512, 256, ROWS])


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_weights_are_widened_on_request(tmp_path, weights):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q4_K", layers=1)
    bundle = export(file, tmp_path / "bundle", weights=weights)
    assert kept(bundle) == ()
    assert "MatMulNBits" not in {node.op_type for node in graph(bundle).graph.node}
    matrices = ROWS * 256 + 256 * (256 + 128 + 128 + 256 + 3 * 512)
    size = (bundle / "target" / "model.onnx.data").stat().st_size
    assert size == pytest.approx({"fp32": 4, "fp16": 2}[weights] * matrices, rel=0.02)


def test_graphs_that_cannot_read_quantised_weights_get_plain_ones(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q4_0", layers=1)
    bundle = export(file, tmp_path / "bundle", lowering="portable", precision="fp16")
    assert kept(bundle) == ()
    assert "MatMulNBits" not in {node.op_type for node in graph(bundle).graph.node}


def test_weights_that_are_not_finite_are_refused(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    content = bytearray(file.read_bytes())
    content[-34:-32] = np.array([np.inf], dtype=np.float16).tobytes()
    file.write_bytes(content)
    with pytest.raises(CospecError, match="not finite"):
        export(file, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert left_in(tmp_path) == [file.name]


def test_a_file_that_is_cut_off_is_refused_and_nothing_is_left(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut off"):
        export(file, tmp_path / "bundle")
    assert left_in(tmp_path) == [file.name]


def test_a_kernel_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    right = decoder_export._compute_in_fp32

    def break_the_int8_graph(path, output):
        """Negate what the products read in the graph that will run."""
        right(path, output)
        model = onnx.load(path, load_external_data=False)
        products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
        negations = {}
        for node in products:
            read = node.input[0]
            node.input[0] = f"{read}_negated"
            negations[read] = onnx.helper.make_node("Neg", [read], [node.input[0]])
        model.graph.node.extend(negations.values())
        onnx.save(sorted_nodes(model), path)

    monkeypatch.setattr(decoder_export, "_compute_in_fp32", break_the_int8_graph)
    with pytest.raises(GateError, match="in int8: half of the rows differ from transformers by"):
        export(file, tmp_path / "bundle")
    assert left_in(tmp_path) == [file.name]


def sorted_nodes(model):
    import onnx_ir

    made = onnx_ir.from_proto(model)
    made.graph.sort()
    return onnx_ir.to_proto(made)


def test_a_disk_that_is_full_in_the_middle_of_the_weights_leaves_nothing(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system ends each write at this many bytes of a file, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size // 2, hard))
    try:
        with pytest.raises(ResourceError, match="of the bundle were written") as error:
            export(file, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in str(error.value)
    assert left_in(tmp_path) == [file.name]
