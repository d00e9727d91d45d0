"""The TensorRT engine over a *simulated* TensorRT and CUDA: how it drives them, not what a GPU does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_cuda import CudaError, SimulatedCuda
from simulated_tensorrt import VERSIONS, SimulatedTensorRt, simulated_plan

from cospec.errors import BackendError, PromptError, ResourceError
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.decoding.placement import graph_shape
from cospec.runtime.engines.onnxruntime import OrtDecoder, OrtEngine, OrtOptions
from cospec.runtime.engines.protocol import ChainedDecoder, GraphShape, StepOutput
from cospec.runtime.tensorrt.cuda import Cuda, Stream
from cospec.runtime.tensorrt.engine import TensorRtDecoder, TensorRtEngine, TensorRtOptions
from cospec.runtime.tensorrt.execution import is_fixed, profile_of

WIDTHS = [(1, 1, 1), (2, 4, 4), (1, 64, 64)]
PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84]
EVERYTHING = (
    "top_values",
    "top_ids",
    "entropy",
    "next_input_logprob",
    "hidden",
    "logits",
)
FORMS = pytest.mark.parametrize("form", ["scatter", "portable"])


class Rig:
    """An engine on a simulated device of its own, and ONNX Runtime on the same graph."""

    def __init__(self, bundle: Path, form: str) -> None:
        manifest = read_manifest(bundle)
        self.form = form
        self.graph = bundle / manifest.models.target.graph
        self.shape: GraphShape = graph_shape(manifest, manifest.models.target)
        self.cuda = SimulatedCuda()
        self.trt = SimulatedTensorRt(self.cuda, VERSIONS[form])

    def plan(self, **changes: Any) -> bytes:
        facts = {"widths": WIDTHS, "in_place": self.form == "scatter"} | changes
        return simulated_plan(self.graph, **({"version": self.trt.__version__} | facts))

    def engine(self, plan: bytes | None = None, **changes: Any) -> TensorRtEngine:
        return TensorRtEngine(
            plan or self.plan(),
            **{"shape": self.shape, "lowering": self.form} | changes,
            trt=self.trt,
            cuda=self.cuda,
        )

    def reference(self, outputs: tuple[str, ...] = EVERYTHING) -> OrtDecoder:
        options = OrtOptions(provider="cpu", threads=1)
        return OrtEngine(self.graph, self.shape, options).decoder(outputs)


@pytest.fixture
def rig(tiny_pair_for_tensorrt: Callable[[str], Path]) -> Callable[[str], Rig]:
    return lambda form: Rig(tiny_pair_for_tensorrt(form), form)


def assert_same(found: StepOutput, expected: StepOutput, last: int | None = None) -> None:
    """Equal to rounding in every array that either has; `last` compares the last rows only."""
    for name in ("token", *EVERYTHING, "logsumexp"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is None:
            continue
        a, b = (a, b) if last is None else (a[-last:], b[-last:])
        if name == "next_input_logprob":  # the last row has no successor
            a, b = a[:-1], b[:-1]
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


@FORMS
@pytest.mark.parametrize("graphs", [True, False])
def test_every_width_and_rollback_agrees_with_onnx_runtime(rig, form, graphs):
    r = rig(form)
    decoder = r.engine(options=TensorRtOptions(cuda_graphs=graphs)).decoder(EVERYTHING)
    reference = r.reference()
    rng = np.random.default_rng(0)
    for width in [10, 1, 1, 1, 2, 3, 4, 2, 3, 4, 1, 64, 4, 17, 3, 1]:
        tokens = rng.integers(5, 500, width)
        decoder.step([300] * 5)  # garbage, rolled back
        decoder.truncate(decoder.length - 5)
        assert_same(decoder.step(tokens), reference.step(tokens))
        keep = decoder.length - width // 2
        decoder.truncate(keep)
        reference.truncate(keep)
    recorded = set(decoder.recording_report().values())
    assert ("recorded" in recorded) == graphs
    assert recorded <= {"recorded", "not run twice"}
    assert (r.cuda.calls["cudaGraphLaunch"] > 5) == graphs


@FORMS
def test_a_chain_of_draft_steps_is_the_plain_loop_with_one_wait(rig, form):
    r = rig(form)
    decoder, reference = r.engine().decoder(EVERYTHING), r.reference()
    assert isinstance(decoder, ChainedDecoder)
    assert not isinstance(reference, ChainedDecoder)
    decoder.step(PROMPT)
    reference.step(PROMPT)
    for fed, count in [([5], 3), ([6, 7], 3), ([8], 3), ([9], 1), ([10, 11], 3), ([12, 13], 3)]:
        waits = r.cuda.calls["cudaStreamSynchronize"]
        rows = decoder.draft(fed, count)
        assert r.cuda.calls["cudaStreamSynchronize"] == waits + 1
        tokens = list(fed)
        for i in range(count):
            plain = reference.step(tokens)
            assert rows.token[i] == plain.token[-1]
            for name in ("logits", "hidden", "top_values", "entropy", "logsumexp"):
                np.testing.assert_allclose(
                    getattr(rows, name)[i], getattr(plain, name)[-1], rtol=1e-4, atol=1e-4
                )
            tokens = [int(plain.token[-1])]
        assert len(rows.token) == count
        assert decoder.length == reference.length
        decoder.truncate(decoder.length - 1)
        reference.truncate(reference.length - 1)
    assert "recorded" in decoder.recording_report().values()


@FORMS
def test_a_step_waits_once_and_copies_no_more_than_was_asked_for(rig, form):
    r = rig(form)
    decoder = r.engine().decoder()
    for width in (10, 1, 4):
        copied = r.cuda.downloaded
        waits = r.cuda.calls["cudaStreamSynchronize"]
        decoder.step(PROMPT[:width])
        assert r.cuda.calls["cudaStreamSynchronize"] == waits + 1
        assert r.cuda.downloaded - copied == width * (8 + 4), "token and logsumexp"
    decoder.select(("top_values",))
    copied = r.cuda.downloaded
    decoder.step(PROMPT[:4])
    assert r.cuda.downloaded - copied == 4 * (8 + 4 + 4 * r.shape.summary_top)


def test_the_cache_is_one_buffer_in_place_and_two_in_the_portable_form(rig):
    sizes = {}
    for form in ("scatter", "portable"):
        r = rig(form)
        decoder = r.engine().decoder()
        sizes[form] = r.cuda.used
        decoder.step(PROMPT)
        assert r.cuda.used == sizes[form], "a pass allocates nothing on the device"
        one_cache = sum(2 * heads * dim for heads, dim in r.shape.kv_shapes) * 4 * r.shape.capacity
    assert sizes["portable"] - sizes["scatter"] == one_cache


@FORMS
def test_a_recurring_call_allocates_and_binds_nothing(rig, form):
    r = rig(form)
    decoder = r.engine().decoder()
    for _ in range(6):
        decoder.step(PROMPT[:4])
        decoder.draft([5], 3)
        decoder.truncate(0)
    before = dict(r.cuda.calls)
    decoder.step(PROMPT[:4])
    decoder.draft([5], 3)
    changed = {name for name, count in r.cuda.calls.items() if count != before.get(name)}
    assert changed == {"cudaGraphLaunch", "cudaStreamSynchronize"}


def test_two_decoders_on_one_engine_are_independent(rig):
    r = rig("scatter")
    engine = r.engine()
    one, two, alone = engine.decoder(("logits",)), engine.decoder(), r.reference(("logits",))
    for token in PROMPT:
        two.step([token + 100])
        np.testing.assert_allclose(
            one.step([token]).logits, alone.step([token]).logits, rtol=1e-4, atol=1e-4
        )
    two.truncate(3)
    assert (one.length, two.length) == (10, 3)


def test_what_a_step_returned_outlives_steps_of_other_widths(rig):
    decoder = rig("scatter").engine().decoder(("top_values",))
    wide = decoder.step(PROMPT[:4])
    kept = {"token": wide.token.copy(), "top_values": wide.top_values.copy()}
    decoder.step([7])
    decoder.draft([8], 3)
    np.testing.assert_array_equal(wide.token, kept["token"])
    np.testing.assert_array_equal(wide.top_values, kept["top_values"])


@FORMS
def test_a_written_cache_continues_like_the_one_it_came_from(rig, form):
    r = rig(form)
    source, copy = r.reference(("logits",)), r.engine().decoder(("logits",))
    source.step(PROMPT[:6])
    arrays = [value.numpy()[:, :, :6].copy() for value in source._cache.values()]
    copy.step([77] * 12)
    copy.write_cache(list(zip(arrays[0::2], arrays[1::2], strict=True)), 6)
    assert copy.length == 6
    np.testing.assert_allclose(
        copy.step(PROMPT[6:]).logits, source.step(PROMPT[6:]).logits, rtol=1e-4, atol=1e-4
    )


@FORMS
def test_numbers_that_are_not_finite_are_an_error_and_leave_no_trace(rig, form):
    r = rig(form)
    decoder, reference = r.engine().decoder(("logits",)), r.reference(("logits",))
    for _ in range(3):  # plain, recorded, launched
        decoder.step(PROMPT[:4])
        r.trt.poison = True
        with pytest.raises(BackendError, match="not finite") as caught:
            decoder.step([58, 97, 93])
        with pytest.raises(BackendError, match="not finite"):
            decoder.draft([58], 3)
        r.trt.poison = False
        assert "--precision fp32" in caught.value.hint
        assert decoder.length == 4, "nothing was fed"
        # Past the length there is NaN otherwise, and zero times NaN is NaN.
        rows = decoder.step(PROMPT[4:6]).logits
        reference.step(PROMPT[:4])
        expected = reference.step(PROMPT[4:6]).logits
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)
        decoder.truncate(0)
        reference.truncate(0)


@pytest.mark.parametrize("held", [0, 510, 512])
def test_overflow_is_refused_with_nothing_fed(rig, held):
    decoder = rig("scatter").engine().decoder()
    while decoder.length < held:
        decoder.step([5] * min(64, held - decoder.length))
    room = 512 - held
    for feed in (lambda: decoder.step([9] * (room + 1)), lambda: decoder.draft([9], room + 1)):
        with pytest.raises(PromptError, match=rf"{held} \+ {room + 1} tokens do not fit"):
            feed()
    assert decoder.length == held
    with pytest.raises(ValueError, match="cannot truncate"):
        decoder.truncate(held + 1)


def test_memory_comes_back_when_a_decoder_goes(rig):
    r = rig("scatter")
    engine = r.engine()
    decoder = engine.decoder()
    for _ in range(3):
        decoder.step(PROMPT[:4])
    assert r.cuda.used > 0
    del decoder
    gc.collect()
    assert (r.cuda.used, r.cuda.pinned, r.cuda.graphs) == (0, 0, 0)


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


def test_profiles_are_chosen_by_width():
    widths = [(1, 1), (2, 4), (1, 64)]
    assert [profile_of(widths, w) for w in (1, 2, 4, 5, 64, 65)] == [0, 1, 1, 2, 2, None]
    assert [is_fixed(widths, w) for w in (1, 2, 4, 5, 64)] == [True] * 3 + [False] * 2
    narrow = [(1, 1), (2, 4), (1, 4)]  # a prefill chunk no wider than a block
    assert [profile_of(narrow, w) for w in (1, 2, 4)] == [0, 1, 1]
    assert all(is_fixed(narrow, w) for w in (1, 2, 4))
    assert not any(is_fixed([(1, 64)], w) for w in (1, 4, 64))


# The simulation itself


def test_the_simulation_shows_a_read_before_the_wait():
    cuda = SimulatedCuda()
    stream = Stream(Cuda(cuda))
    _, address = cuda.cudaMalloc(256)
    source, target = np.arange(4.0), np.zeros(4)
    stream.upload(address, source)
    stream.download(target, address)
    assert not target.any(), "nothing has run yet"
    source[:] = 7
    stream.synchronize()
    assert target.tolist() == [7] * 4, "and an input that was reused too early is seen"


def test_the_simulation_captures_nothing_on_the_default_stream():
    cuda = SimulatedCuda()
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert cuda.cudaStreamBeginCapture(0, mode) == (CudaError.cudaErrorStreamCaptureUnsupported,)


def test_the_simulation_spoils_a_capture_in_which_somebody_waits():
    stream = Stream(Cuda(SimulatedCuda()))
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
        stream.capture(stream.synchronize)
    stream.synchronize()
