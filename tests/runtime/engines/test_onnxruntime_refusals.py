"""Graphs, options and numbers that the ONNX Runtime engine refuses."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from engine_graphs import CPU, POISON, PROMPT, cached

from cospec.errors import BackendError, BundleError, ResourceError, UsageError
from cospec.runtime.engines import host_memory
from cospec.runtime.engines.onnxruntime import (
    OrtEngine,
    OrtOptions,
)


@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated", "no weights"])
def test_a_graph_that_cannot_be_loaded(graphs, tmp_path, damage):
    paths, shape = graphs
    graph = tmp_path / "model.onnx"
    original = paths["gqa"].read_bytes()
    if damage != "missing":
        contents = {"garbage": b"\x00" * 999, "truncated": original[: len(original) // 2]}
        graph.write_bytes(contents.get(damage, original))
    with pytest.raises(BackendError, match="could not load") as caught:
        OrtEngine(graph, shape, CPU)
    assert str(graph) in caught.value.message
    assert "cospec-verify" in caught.value.hint


WRONG_SHAPES = {
    "head size": ({"kv_shapes": ((2, 999),) * 2}, "'past.0.key' is an input float32"),
    "a layer too many": ({"kv_shapes": ((2, 16),) * 3}, "'past.2.key' is not there, expected"),
    "a layer too few": ({"kv_shapes": ((2, 16),)}, "expected not there"),
    "capacity": ({"capacity": 1 << 24}, "'past.0.key' is an input float32"),
    "hidden size": ({"hidden_size": 7}, "'hidden' is an output float32 [1, -1, 64], expected"),
    "vocabulary": ({"vocab_size": 7}, "'logits' is an output float32 [1, -1, 320], expected"),
    "candidates": ({"summary_top": 1}, "'top_values' is an output float32"),
    "cache dtype": ({"cache_dtype": "float16"}, "'past.0.key' is an input float32"),
}


@pytest.mark.parametrize("wrong", WRONG_SHAPES)
@pytest.mark.parametrize("form", ["gqa", "portable"])
def test_a_graph_that_is_not_what_the_manifest_says_is_refused_at_load(graphs, form, wrong):
    paths, shape = graphs
    changes, problem = WRONG_SHAPES[wrong]
    with pytest.raises(BundleError, match=re.escape(problem)) as caught:
        OrtEngine(paths[form], replace(shape, **changes), CPU)
    assert str(paths[form]) in caught.value.message


def test_a_cache_that_no_memory_can_hold_is_refused_before_it_is_allocated(graphs, monkeypatch):
    paths, shape = graphs
    engine = OrtEngine(paths["gqa"], shape, CPU)
    monkeypatch.setattr(host_memory, "available_memory", lambda: shape.cache_bytes - 1)
    with pytest.raises(ResourceError, match="the cache of a decoder takes") as caught:
        engine.decoder()
    assert "--capacity" in caught.value.hint
    monkeypatch.setattr(host_memory, "available_memory", lambda: None)
    assert engine.decoder().length == 0, "where nobody knows, it is tried"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="a CUDA build of onnxruntime"
)
def test_cuda_on_a_cpu_build_is_refused(load):
    with pytest.raises(UsageError, match="CPU build") as caught:
        load(options=OrtOptions(provider="cuda"))
    assert "cospec[gpu]" in caught.value.hint
    assert load(options=OrtOptions(provider="auto")).device == "cpu"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lowering", ["gqa", "portable"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_an_error_and_leave_no_trace(load, lowering, number):
    name = f"{lowering}-{number}"
    decoder = load(name).decoder()
    decoder.step(PROMPT[:4])
    length, before = decoder.length, cached(decoder)
    for block in ([POISON], [58, POISON], [POISON, 97, 93]):
        with pytest.raises(BackendError, match="numbers that are not finite") as caught:
            decoder.step(block)
        assert str(Path(name) / "model.onnx") in caught.value.message
        assert "--precision fp32" in caught.value.hint
        assert decoder.length == length, "nothing was fed"
        assert np.array_equal(cached(decoder), before)
    # NaN behind the length would reach this step through attention: zero times NaN is NaN.
    expected = load(lowering).decoder().step(PROMPT).token.tolist()
    # One by one, so that what the refused blocks wrote is not simply overwritten.
    assert [int(decoder.step([token]).token[0]) for token in PROMPT[4:]] == expected[4:]


@pytest.mark.parametrize("threads", [1, 2, None])
def test_options_reach_onnx_runtime(load, threads):
    session = load(options=OrtOptions(provider="cpu", threads=threads)).session
    options = session.get_session_options()
    assert options.intra_op_num_threads == (threads or 0)
    assert options.inter_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_without_onnxruntime_the_extra_is_named(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="'onnxruntime', which is not installed") as caught:
        load()
    assert caught.value.hint == 'pip install "cospec[cpu]"'
