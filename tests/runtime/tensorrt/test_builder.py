"""Parsing and building: what each GPU computes in, progress, words of refusals, noise."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorrt_graphs import write_linear, write_scatter_decoder

from cospec.errors import BackendError, GateError, ResourceError
from cospec.runtime.tensorrt.builder import (
    BuildLog,
    BuildRequest,
    build_error,
    build_plan,
    parse_graph,
)
from cospec.runtime.tensorrt.devices import precisions_of
from cospec.runtime.tensorrt.profiles import Profile

ANY = (Profile("any", 1, 4, 8),)


def build(trt: Any, graph: Path, sm: int, **more: Any) -> bytes:
    return build_plan(trt, parse_graph(trt, graph), BuildRequest(ANY, sm), **more).plan


@pytest.mark.parametrize("sm", [75, 86, 89, 120])
@pytest.mark.parametrize("form", ["fp16", "int8", "int4", "fp8"])
def test_weights_build_where_the_table_says_so(trt, tmp_path, form, sm):
    graph = write_linear(tmp_path / "linear.onnx", form)
    if form in precisions_of(sm):
        assert build(trt, graph, sm)
    else:
        with pytest.raises(GateError, match=rf"weights in {form}\w*, which SM{sm} does not"):
            build(trt, graph, sm)


def test_a_gpu_that_rtx_does_not_know(trt, tmp_path):
    with pytest.raises(BackendError, match="builds no engines for SM 87"):
        build(trt, write_linear(tmp_path / "linear.onnx", "fp16"), 87)


def test_the_parser_refuses_in_its_own_words(trt, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Multinomial", ["x"], ["y"], sample_size=1)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GateError, match=r"rejects model\.onnx: Multinomial") as refused:
        parse_graph(trt, tmp_path / "model.onnx")
    assert refused.value.hint


def test_progress_grows_to_one(trt, tmp_path):
    seen: list[float] = []
    build(trt, write_linear(tmp_path / "linear.onnx", "fp16"), 86, progress=seen.append)
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_build(trt, tmp_path, number):
    graph = parse_graph(trt, write_scatter_decoder(tmp_path / "model.onnx"))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a command sets one
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    sent = []

    def send(share: float) -> None:
        if not sent:
            sent.append(share)
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(trt, graph, BuildRequest(ANY, 86), send)
        assert sent[0] < 1.0
        assert handlers == {each: signal.getsignal(each) for each in handlers}
    finally:
        signal.signal(signal.SIGTERM, before)


def test_noise_of_a_host_without_a_driver_is_left_out():
    log = BuildLog()
    log.add("ERROR", "[cudaDriver.cpp] cudaError 35: CUDA driver version is insufficient")
    log.add("WARNING", "CUDA initialization failure with error: 35. Please check")
    log.add("ERROR", "ir_verifier.cpp:3515 in function check")
    assert log.errors() == ["ir_verifier.cpp:3515 in function check"]
    assert log.warnings() == []
    assert log.text() == "[ERROR] ir_verifier.cpp:3515 in function check\n"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 2147483648 bytes.)", ResourceError),
        ("[virtualMemoryBuffer.cpp] out of memory", ResourceError),
        ("Cuda Runtime (cudaErrorMemoryAllocation)", ResourceError),
        ("could not find any implementation for node", GateError),
    ],
)
def test_a_build_that_runs_out_of_memory_is_another_error(words, kind):
    class Installed:
        __name__ = "tensorrt"
        __version__ = "10.3.0"

    error = build_error(Installed(), Path("model.onnx"), [words])
    assert type(error) is kind
    assert words in error.message
    assert error.hint
