"""Weights in few bits for TensorRT: what the graph holds and computes, and what is built of it.

`make test-trt` exports every family in every form, and builds it for three GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf_files import random_gguf
from onnx import numpy_helper
from tensorrt_matrix import (
    TINY_TARGET,
    WEIGHTS,
    Exported,
    check_and_build,
    checkpoint_of,
    write_graph,
)

from cospec.errors import GateError
from cospec.export.weights import tensorrt_weights
from cospec.runtime.tensorrt.devices import precisions_of

LINEAR = 4 * 7  # matrices of the layers of the tiny target
TYPES = {"int8": "int8", "int4": "int4", "fp8": "float8_e4m3fn"}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Exported]]:
    """The tiny target by the form of its weights: a folder, and what was exported there."""
    root = tmp_path_factory.mktemp("weights")
    checkpoint = checkpoint_of(TINY_TARGET, root)
    return {
        weights: (
            root / weights,
            write_graph(checkpoint, "scatter", root / weights, weights=weights),
        )
        for weights in ("fp16", *WEIGHTS)
    }


def logits(graph: Path) -> np.ndarray:
    """Return what a graph computes for a block of 16 tokens after an empty cache."""
    import onnxruntime as ort

    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {
        "input_ids": np.arange(16, dtype=np.int64)[None] * 7 + 10,
        "cache_length": np.zeros(1, np.int64),
    }
    for value in session.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros(value.shape, np.float16)
    return session.run(["logits"], feeds)[0].astype(np.float64)


def stored_types(graph: Path) -> list[str]:
    """Return the types of the matrices of a graph that are read by DequantizeLinear."""
    model = onnx.load(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return [numpy_helper.to_array(tensors[name]).dtype.name for name in sorted(read)]


@pytest.mark.parametrize(("weights", "cosine"), [("int8", 0.9995), ("int4", 0.95), ("fp8", 0.998)])
def test_a_quantised_graph_still_computes_the_model(weights, cosine, graphs):
    plain, found = (
        logits(folder / exported.spec.graph)
        for folder, exported in (graphs["fp16"], graphs[weights])
    )
    alike = (plain * found).sum() / np.sqrt((plain**2).sum() * (found**2).sum())
    assert cosine < alike < 1, "close to the model, and not the same"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_gate_compares_the_graph_with_the_numbers_that_it_holds(weights, graphs):
    gate = graphs[weights][1].gate
    assert 0 < gate["max_relative_error"] <= gate["tolerance"]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_layers_and_the_shared_embedding_are_stored_in_few_bits(weights, graphs):
    folder, exported = graphs[weights]
    assert stored_types(folder / exported.spec.graph) == [TYPES[weights]] * (LINEAR + 1)
    assert sum(kept.tensors for kept in exported.kept) == LINEAR + 1
    plain_folder, _ = graphs["fp16"]
    size, plain = (
        (each / "target" / "model.onnx.data").stat().st_size for each in (folder, plain_folder)
    )
    assert size < plain * (0.3 if weights == "int4" else 0.55)


def test_for_tensorrt_10_the_head_is_in_few_bits_and_the_embedding_is_not(graphs, tmp_path):
    checkpoint = checkpoint_of(TINY_TARGET, tmp_path)
    exported = write_graph(checkpoint, "portable", tmp_path, weights="int4")
    graph = tmp_path / exported.spec.graph
    assert stored_types(graph) == ["int4"] * (LINEAR + 1)
    model = onnx.load(graph, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 21
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    lookups = [n.input[0] for n in model.graph.node if n.op_type == "Gather"]
    assert dequantised.isdisjoint(lookups)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            assert len(node.input) == 3, (
                "the parser of TensorRT 10 takes the type from the zero point"
            )


@pytest.mark.parametrize("form", [("scatter", True), ("scatter", False), ("portable", False)])
@pytest.mark.parametrize("is_tied", [True, False])
def test_mixed_kinds_of_a_file_are_kept_and_pass_the_gate(form, is_tied, tmp_path):
    """As Q4_K_M mixes kinds; minima and zero points become a term of their own."""

    def kind(name: str) -> str:
        if name.endswith(("attn_v", "ffn_down")):
            return "Q6_K"
        return {"token_embd": "Q4_1", "output": "Q8_0"}.get(name, "Q4_K")

    lowering, free = form
    file = random_gguf(tmp_path / "m.gguf", kind, is_tied=is_tied, layers=1)
    exported = write_graph(file, lowering, tmp_path, weights="keep", free=free)
    kinds = {kept.kind: kept for kept in exported.kept}
    assert kinds["Q4_K"].tensors == 5
    assert kinds["Q4_K"].max_error < 1e-3
    assert ("Q6_K" in kinds) == free
    assert ("int8" in kinds) == (not free)
    assert exported.gate["max_relative_error"] <= exported.gate["tolerance"]


def test_numbers_that_are_not_the_checkpoints_are_refused(tmp_path, monkeypatch):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q4_0", layers=1)
    right = tensorrt_weights.matrix_of
    monkeypatch.setattr(tensorrt_weights, "matrix_of", lambda *a: right(*a) * 1.01)
    with pytest.raises(GateError, match=r"the Q4_0 numbers of .* cannot be taken over"):
        write_graph(file, "scatter", tmp_path, weights="keep")


@pytest.mark.parametrize("sm", [86, 89])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_trained_model_builds_with_the_weights_that_a_gpu_has(weights, sm, graphs):
    trt = pytest.importorskip(
        "tensorrt_rtx", reason='no TensorRT-RTX here: pip install "cospec[rtx]"'
    )
    folder, exported = graphs[weights]
    found = check_and_build(trt, folder, exported.spec, sm)
    assert found["linted"]
    assert found["built"] == (weights in precisions_of(sm)), found
    if found["built"]:
        assert found["fused_attention_per_profile"] == exported.spec.form.layers
    else:
        assert "holds weights in fp8_e4m3, which SM86 does not compute in" in found["refused"]
        assert "Cannot compile for target(s) sm86" in found["refused"], "the builder's own words"
