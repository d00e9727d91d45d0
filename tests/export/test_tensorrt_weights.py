"""A trained model with quantised weights: what it computes, and what NVIDIA's builder says of it.

`make test-trt` does the same with SmolLM2 and the draft of the tiny pair, in both forms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tensorrt_matrix import TINY_TARGET, check_and_build, checkpoint_of, write_graph
from tensorrt_weights import BLOCK, FORMS, quantise, quantised

from cospec.runtime.tensorrt.devices import precisions_of

LINEAR_WEIGHTS = 4 * 7  # of four layers; the head is tied to the embedding


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the tiny target's graph by the form of its weights, and its EngineSpec."""
    root = tmp_path_factory.mktemp("weights")
    spec = write_graph(checkpoint_of(TINY_TARGET, root), "scatter", root / "fp16")
    for form in FORMS:
        assert (
            quantise(root / "fp16" / spec.graph, root / form / spec.graph, form) == LINEAR_WEIGHTS
        )
    return {"spec": spec} | {form: root / form for form in ("fp16", *FORMS)}


def logits(graph: Path) -> np.ndarray:
    """What a graph says to a block of 16 tokens behind an empty cache."""
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


@pytest.mark.parametrize(("form", "cosine"), [("int8", 0.9995), ("int4", 0.95), ("fp8", 0.998)])
def test_a_quantised_graph_still_computes_the_model(form, cosine, graphs):
    expected = logits(graphs["fp16"] / graphs["spec"].graph)
    found = logits(graphs[form] / graphs["spec"].graph)
    alike = (expected * found).sum() / np.sqrt((expected**2).sum() * (found**2).sum())
    assert cosine < alike < 1, "close to the model, and not the same"


@pytest.mark.parametrize("form", FORMS)
def test_every_linear_weight_is_stored_in_its_form(form, graphs):
    model = onnx.load(graphs[form] / graphs["spec"].graph)
    kinds = [
        numpy_helper.to_array(tensor).dtype.name
        for tensor in model.graph.initializer
        if tensor.name.endswith(f".{form}")
    ]
    expected = {"int8": "int8", "int4": "int4", "fp8": "float8_e4m3fn"}[form]
    assert kinds == [expected] * LINEAR_WEIGHTS
    read = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert len(read) == LINEAR_WEIGHTS
    assert read <= {name for node in model.graph.node for name in node.input}


@pytest.mark.parametrize("form", FORMS)
def test_rounding_is_to_the_nearest_value(form):
    weight = np.random.default_rng(0).normal(0, 0.1, (4 * BLOCK, 8)).astype(np.float16)
    values, scale = quantised(weight, form)
    assert scale.shape == ((4, 8) if form == "int4" else (8,))
    per_row = scale.repeat(BLOCK, axis=0) if form == "int4" else scale
    error = np.abs(values.astype(np.float32) * per_row.astype(np.float32) - weight)
    # A float keeps three binary digits behind the first, so it is off by a sixteenth of itself at most.
    step = np.abs(weight) / 16 if form == "fp8" else np.float32(per_row) / 2
    assert (error <= step * 1.02 + 1e-4).all()


@pytest.mark.parametrize("sm", [86, 89])
@pytest.mark.parametrize("form", FORMS)
def test_a_trained_model_builds_with_the_weights_that_a_gpu_has(form, sm, graphs):
    trt = pytest.importorskip(
        "tensorrt_rtx", reason='no TensorRT-RTX here: pip install "cospec[rtx]"'
    )
    found = check_and_build(trt, graphs[form], graphs["spec"], sm)
    assert found["linted"]
    assert found["built"] == (form in precisions_of(sm)), found
    if found["built"]:
        assert found["fused_attention_per_profile"] == graphs["spec"].form.layers
    else:
        assert "holds weights in fp8_e4m3, which SM86 does not compute in" in found["refused"]
        assert "Cannot compile for target(s) sm86" in found["refused"], "the builder's own words"
