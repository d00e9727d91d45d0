"""The TensorRT engine over a *simulated* TensorRT and CUDA: how it drives them, not what a GPU does."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from simulated_rig import EVERYTHING, FORMS, PROMPT

from cospec.errors import BackendError, PromptError
from cospec.runtime.engines.protocol import ChainedDecoder, StepOutput
from cospec.runtime.tensorrt.engine import TensorRtOptions
from cospec.runtime.tensorrt.execution import is_fixed, profile_of


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


def test_profiles_are_chosen_by_width():
    widths = [(1, 1), (2, 4), (1, 64)]
    assert [profile_of(widths, w) for w in (1, 2, 4, 5, 64, 65)] == [0, 1, 1, 2, 2, None]
    assert [is_fixed(widths, w) for w in (1, 2, 4, 5, 64)] == [True] * 3 + [False] * 2
    narrow = [(1, 1), (2, 4), (1, 4)]  # a prefill chunk no wider than a block
    assert [profile_of(narrow, w) for w in (1, 2, 4)] == [0, 1, 1]
    assert all(is_fixed(narrow, w) for w in (1, 2, 4))
    assert not any(is_fixed([(1, 64)], w) for w in (1, 4, 64))
