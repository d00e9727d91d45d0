"""What goes wrong in TensorRT or on the device, injected, and the error that names it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_cuda import CudaError
from simulated_rig import PROMPT

from cospec.errors import BackendError, ResourceError
from cospec.runtime.tensorrt.engine import TensorRtDecoder, TensorRtOptions

# What goes wrong


def test_without_a_gpu_the_process_lives_to_say_so(rig):
    r = rig("scatter")
    r.cuda.devices = 0
    with pytest.raises(BackendError, match="cudaErrorInsufficientDriver") as caught:
        r.engine()
    assert "--backend onnxruntime" in caught.value.hint


@pytest.mark.parametrize("plan", [b"garbage", "other version"])
def test_a_plan_that_cannot_be_loaded_is_an_error_with_tensorrts_words(rig, plan):
    r = rig("scatter")
    data = plan if isinstance(plan, bytes) else r.plan(version="10.15.1.29")
    with pytest.raises(BackendError, match=r"cannot load the plan: simulated: ") as caught:
        r.engine(data)
    assert "--build-only" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        ({"capacity": 256}, "past.0.key"),
        ({"cache_dtype": "float16"}, "past.0.key"),
        ({"vocab_size": 511}, "logits"),
        ({"hidden_size": 64}, "hidden"),
        ({"summary_top": 4}, "top_values"),
        ({"kv_shapes": ((2, 32),) * 3}, "past.3.key"),
        ({"kv_shapes": ((2, 32),) * 5}, "past.4.key"),
    ],
)
def test_a_plan_of_another_graph_is_refused_by_its_tensors(rig, change, tensor):
    r = rig("scatter")
    with pytest.raises(BackendError, match=f"'{tensor}' is") as caught:
        r.engine(shape=replace(r.shape, **change))
    assert "--build-only" in caught.value.hint


def test_a_cache_that_is_not_aliased_as_the_form_says_is_refused(rig):
    r = rig("scatter")
    with pytest.raises(BackendError, match=r"'present.0.key' is a copy, expected an alias of past"):
        r.engine(r.plan(in_place=False))
    r = rig("portable")
    r.trt.knows_aliases = True
    with pytest.raises(
        BackendError, match=r"'present.0.key' is an alias of past.0.key, expected a"
    ):
        r.engine(r.plan(in_place=True))


def test_a_width_without_a_profile_is_refused(rig):
    r = rig("scatter")
    decoder = r.engine(r.plan(widths=[(1, 1, 1), (2, 4, 4)])).decoder()
    with pytest.raises(BackendError, match="accepts no pass of 5 tokens, only of 1 to 1, 2 to 4"):
        decoder.step(PROMPT[:5])
    decoder.step(PROMPT[:4])
    assert decoder.length == 4


@pytest.mark.parametrize(
    "method", ["create_execution_context", "set_optimization_profile_async", "execute_async_v3"]
)
def test_a_call_that_tensorrt_refuses_is_an_error_and_feeds_nothing(rig, method):
    r = rig("scatter")
    decoder = r.engine().decoder()
    r.trt.broken = {method}
    with pytest.raises(BackendError, match=r"the plan.*simulated: "):
        decoder.step([5])
    r.trt.broken = set()
    assert decoder.length == 0
    assert decoder.step([5]).token.shape == (1,)


def contexts(decoder: TensorRtDecoder) -> list[Any]:
    return [context.native for context in decoder._contexts._made.values()]


@pytest.mark.parametrize(
    ("name", "address", "said"),
    [
        ("input_ids", 0, "no address for input_ids"),
        ("token", 12345, "not aligned"),
        ("present.0.key", 256, "is an alias of past.0.key but has another address"),
    ],
)
def test_injected_wrong_addresses_are_typed_errors(rig, name, address, said):
    decoder = rig("scatter").engine(options=TensorRtOptions(cuda_graphs=False)).decoder()
    decoder.step([5])
    (context,) = contexts(decoder)
    good = context._addresses[name]
    context.set_tensor_address(name, address)
    with pytest.raises(BackendError, match=said):
        decoder.step([5])
    context.set_tensor_address(name, good)
    decoder.step([5])
    assert decoder.length == 2


def test_an_injected_wrong_shape_is_a_typed_error(rig):
    decoder = rig("scatter").engine().decoder()
    decoder.step([5])
    with pytest.raises(BackendError, match=r"cannot have the shape \(1, 9\).*outside of profile 0"):
        next(iter(decoder._contexts._made.values())).reshape({"input_ids": (1, 9)})


def test_a_fault_on_the_device_is_told_at_the_next_wait(rig):
    r = rig("scatter")
    decoder = r.engine().decoder()
    decoder.step([5])
    (context,) = contexts(decoder)
    context.set_tensor_address("token", 1 << 60)  # aligned, and nobody's
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress") as caught:
        decoder.step([5])
    assert "start it again" in caught.value.hint


@pytest.mark.parametrize(
    ("call", "kind"), [("cudaMalloc", ResourceError), ("cudaMallocHost", ResourceError)]
)
def test_memory_that_cannot_be_had_is_a_resource_error(rig, call, kind):
    r = rig("scatter")
    engine = r.engine()
    r.cuda.fail[call] = CudaError.cudaErrorMemoryAllocation
    with pytest.raises(kind, match=f"{call} failed.*cudaErrorMemoryAllocation") as caught:
        engine.decoder().step([5])
    assert "--capacity" in caught.value.hint
    r.cuda.fail.clear()
    r.cuda.memory = 1 << 20
    with pytest.raises(ResourceError, match="cudaErrorMemoryAllocation"):
        engine.decoder()


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_a_graph_that_cannot_be_recorded_is_left_with_the_reason(rig, call):
    r = rig("scatter")
    decoder, reference = r.engine().decoder(("logits",)), r.reference(("logits",))
    r.cuda.fail[call] = CudaError.cudaErrorStreamCaptureUnsupported
    for _ in range(4):
        np.testing.assert_allclose(
            decoder.step([5]).logits, reference.step([5]).logits, rtol=1e-4, atol=1e-4
        )
    (reason,) = decoder.recording_report().values()
    assert f"{call} failed" in reason
    assert r.cuda.calls["cudaStreamBeginCapture"] == 1, "tried once"
    assert r.cuda.calls["cudaGraphLaunch"] == 0


def test_rtx_can_say_beforehand_that_a_pass_cannot_be_recorded(rig):
    r = rig("scatter")
    r.trt.__version__ = "1.7.1.116"
    r.trt.knows_aliases = True
    r.trt.refuse_captures = True
    decoder = r.engine().decoder()
    for _ in range(3):
        decoder.step([5])
    assert set(decoder.recording_report().values()) == {
        "TensorRT says that this pass cannot be captured"
    }
    assert r.cuda.calls["cudaStreamBeginCapture"] == 0
