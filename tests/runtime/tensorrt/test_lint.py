"""The lint refuses what TensorRT's parser and builder accept in silence, each with its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorrt_graphs import CAPACITY, Broken, write_scatter_decoder

from cospec.errors import GateError
from cospec.export.dropped_inputs import lint_inputs
from cospec.runtime.tensorrt.builder import BuildRequest, ParsedGraph, build_plan, parse_graph
from cospec.runtime.tensorrt.lint import (
    DecoderForm,
    activation_bytes,
    fused_attention_kernels,
    lint_build,
    lint_network,
)
from cospec.runtime.tensorrt.profiles import Profile

FORM = DecoderForm("scatter", layers=1, capacity=CAPACITY)
PROFILES = (Profile("verify", 1, 4, 4), Profile("prefill", 1, 16, 16))


def parsed(trt: Any, folder: Path, **broken: Any) -> ParsedGraph:
    return parse_graph(trt, write_scatter_decoder(folder / "model.onnx", Broken(**broken)))


def test_a_right_graph_is_clean_and_fused(trt, tmp_path):
    graph = parsed(trt, tmp_path)
    lint_network(trt, graph, FORM)
    lint_inputs(trt, graph)
    made = build_plan(trt, graph, BuildRequest(PROFILES, sm=86))
    lint_build(trt, graph, len(PROFILES))
    assert len(made.plan) > 100_000
    assert len(fused_attention_kernels(made.log)) == len(PROFILES)
    assert activation_bytes(made.log) > 0


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"mask": "causal"}, "UPPER_LEFT"),
        ({"mask": "none"}, "has no mask"),
        ({"cache": "concat"}, "present.0.key is not an update of the cache in place"),
        ({"cache": "crossed"}, "present.0.key updates past.0.value instead of past.0.key"),
        ({"unused_input": True}, "nothing reads the input idle"),
    ],
)
def test_a_broken_graph_parses_and_is_refused(trt, tmp_path, broken, words):
    graph = parsed(trt, tmp_path, **broken)
    with pytest.raises(GateError, match=words):
        lint_network(trt, graph, FORM)


def test_the_causal_graph_would_build(trt, tmp_path):
    """Without the lint, nothing would have said a word."""
    graph = parsed(trt, tmp_path, mask="causal")
    build_plan(trt, graph, BuildRequest(PROFILES[:1], sm=86))
    assert graph.log.errors() == []


def test_a_dropped_input_is_named(trt, tmp_path):
    with pytest.raises(GateError, match=r"dropped the input filled of the Attention node"):
        lint_inputs(trt, parsed(trt, tmp_path, mask="causal"))


def test_an_attention_too_few_is_refused(trt, tmp_path):
    graph = parsed(trt, tmp_path)
    with pytest.raises(GateError, match=r"past\.1\.key is missing"):
        lint_network(trt, graph, DecoderForm("scatter", layers=2, capacity=CAPACITY))


def test_a_mask_of_another_width_is_none(trt, tmp_path):
    graph = parsed(trt, tmp_path)
    with pytest.raises(GateError, match=r"not an additive one of \[1, 1, S, 63\]"):
        lint_network(trt, graph, DecoderForm("scatter", layers=1, capacity=63))


def test_the_scatter_form_is_not_the_portable_one(trt, tmp_path):
    graph = parsed(trt, tmp_path)
    with pytest.raises(GateError, match="with new rows scattered into it"):
        lint_network(trt, graph, DecoderForm("portable", layers=1, capacity=CAPACITY))


def test_a_contradicting_profile_is_only_a_warning_and_refused(trt, tmp_path):
    graph = parse_graph(trt, write_inconsistent(tmp_path / "model.onnx"))
    made = build_plan(trt, graph, BuildRequest((Profile("any", 1, 2, 4),), sm=86))
    assert made.plan, "TensorRT builds it all the same"
    with pytest.raises(GateError, match="profile contradicts the graph"):
        lint_build(trt, graph, 1)


def write_inconsistent(path: Path) -> Path:
    """A sum of x [1, S] and of y [1, S + 1] without its first column: no width fits both."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    half = TensorProto.FLOAT16
    constants = [
        numpy_helper.from_array(np.array([value]), name)
        for name, value in (("from", 1), ("to", 1 << 60), ("axis", 1))
    ]
    nodes = [
        helper.make_node("Slice", ["y", "from", "to", "axis"], ["rest"], name="cut"),
        helper.make_node("Add", ["x", "rest"], ["sum"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info("x", half, [1, "S"]),
            helper.make_tensor_value_info("y", half, [1, "T"]),
        ],
        [helper.make_tensor_value_info("sum", half, [1, "S"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, path)
    return path
