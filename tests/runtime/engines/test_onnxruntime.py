"""The ONNX Runtime engine on a real graph: its cache, its bindings, its failures."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import onnxruntime as ort
import pytest
from engine_graphs import CAPACITY, CPU, PROMPT, assert_same, cached, logits

from cospec.errors import PromptError
from cospec.runtime.engines.onnxruntime import OrtDecoder, OrtEngine
from cospec.runtime.engines.ort_session import SPIN_MICROSECONDS, session_options_of
from cospec.runtime.engines.protocol import StepOutput


def pointers(decoder: OrtDecoder) -> list[int]:
    return [value.data_ptr() for value in decoder._cache.values()]


def count_bindings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the width of every binding made from now on."""
    made: list[int] = []
    original = OrtDecoder._bind

    def bind(self: OrtDecoder, width: int, *others: int) -> object:
        made.append(width)
        return original(self, width, *others)

    monkeypatch.setattr(OrtDecoder, "_bind", bind)
    return made


@pytest.mark.parametrize("name", ["gqa", "portable"])
def test_the_cache_is_updated_in_place(load, name):
    decoder = load(name).decoder()
    before = pointers(decoder)
    assert len(set(before)) == 4, "one buffer for each kind and layer"
    decoder.step(PROMPT[:4])
    prefix = cached(decoder)
    assert np.abs(prefix).min(axis=(0, 1, 3)).max() > 0, "every fed position was written"
    for token in PROMPT[4:]:
        decoder.step([token])
    assert pointers(decoder) == before
    assert np.array_equal(cached(decoder)[:, :, :4], prefix), "and no other position changed"
    for value in decoder._cache.values():
        assert not value.numpy()[:, :, decoder.length :].any()
    # Past and present are one buffer: what the next step reads is what the last one wrote.
    fresh = load(name).decoder()
    fresh.step(PROMPT)
    np.testing.assert_allclose(cached(fresh), cached(decoder), atol=1e-5)


def test_a_width_is_bound_once(engine, monkeypatch):
    made = count_bindings(monkeypatch)
    decoder = engine.decoder()
    widths = [10, 4, 1, 1, 4, 1, 4, 4, 1]
    outputs: dict[int, set[int]] = {}
    for width in widths:
        if decoder.length + width > CAPACITY - 4:
            decoder.truncate(12)
        output = decoder.step(PROMPT[:width])
        outputs.setdefault(width, set()).add(output.token.ctypes.data)
    assert made == [10, 4, 1]
    assert all(len(addresses) == 1 for addresses in outputs.values()), "buffers are reused"
    decoder.truncate(0)
    decoder.step(PROMPT[:4])
    assert made == [10, 4, 1], "a new generation binds nothing"


def test_narrow_widths_never_evict_a_wide_binding(engine, monkeypatch):
    made = count_bindings(monkeypatch)
    decoder = engine.decoder()
    wide, narrow = [17, 18, 19, 20], list(range(1, 17))
    for width in [*wide, *narrow, *wide, *narrow]:
        decoder.truncate(0)
        decoder.step((PROMPT * 3)[:width])
    assert made == [*wide, *narrow]
    for width in (21, 17):  # a fifth wide one replaces the oldest
        decoder.truncate(0)
        decoder.step((PROMPT * 3)[:width])
    assert made[20:] == [21, 17]


@pytest.mark.parametrize("name", ["gqa", "portable"])
def test_rows_do_not_depend_on_how_the_context_was_split(load, name):
    engine = load(name)
    whole = logits(engine.decoder(("logits",)), PROMPT)
    decoder = engine.decoder(("token", "logits"))
    for split in ([1] * 10, [4, 3, 3], [9, 1], [1, 9]):
        decoder.truncate(0)
        rows, tokens = [], []
        for width in split:
            output = decoder.step(PROMPT[decoder.length : decoder.length + width])
            rows.append(output.logits.copy())
            tokens += output.token.tolist()
        assert_same(np.concatenate(rows), whole)
        assert tokens == whole.argmax(axis=1).tolist()


@pytest.mark.parametrize("name", ["gqa", "portable"])
@pytest.mark.parametrize("keep", [0, 1, 5, 9])
def test_rollback_over_garbage_leaves_no_trace(load, name, keep):
    decoder = load(name).decoder(("token", "logits"))
    clean = logits(decoder, PROMPT)
    decoder.truncate(keep)
    decoder.step([300] * (CAPACITY - keep))  # up to the brim
    decoder.truncate(keep)
    assert decoder.length == keep
    assert_same(logits(decoder, PROMPT[keep:]), clean[keep:])


def test_two_decoders_on_one_engine_are_independent(engine):
    alone = logits(engine.decoder(("logits",)), PROMPT)
    one, two = engine.decoder(("logits",)), engine.decoder(("logits",))
    assert not set(pointers(one)) & set(pointers(two))
    for i, token in enumerate(PROMPT):
        two.step([token + 100])
        assert_same(logits(one, [token])[0], alone[i])
    two.truncate(3)
    assert (one.length, two.length) == (10, 3)


def test_only_what_was_asked_for_is_returned(engine):
    plain = engine.decoder().step(PROMPT)
    assert plain.logits is None
    assert plain.hidden is None
    assert plain.token.dtype == np.int64
    names = ("token", "top_values", "top_ids", "entropy", "next_input_logprob", "hidden", "logits")
    full = engine.decoder(names).step(PROMPT)
    rows = full.logits.astype(np.float64)
    lse = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
    np.testing.assert_allclose(full.logsumexp, lse, rtol=1e-5)
    np.testing.assert_array_equal(full.token, rows.argmax(1))
    np.testing.assert_array_equal(full.top_ids[:, 0], full.token)
    np.testing.assert_allclose(full.top_values, -np.sort(-rows, axis=1)[:, :8], rtol=1e-5)
    chosen = rows[np.arange(9), PROMPT[1:]] - lse[:-1]
    np.testing.assert_allclose(full.next_input_logprob[:-1], chosen, atol=1e-4)
    probabilities = np.exp(rows - lse[:, None])
    entropy = -(probabilities * np.log(probabilities)).sum(1)
    np.testing.assert_allclose(full.entropy, entropy, atol=1e-4)
    assert full.hidden.shape == (10, 64)


@pytest.mark.parametrize("held", [0, 62, 64])
def test_overflow_is_refused_with_nothing_fed(engine, held, monkeypatch):
    decoder = engine.decoder()
    if held:
        decoder.step([5] * held)
    before, made = cached(decoder), count_bindings(monkeypatch)
    with pytest.raises(PromptError, match=rf"{held} \+ {65 - held} tokens do not fit") as caught:
        decoder.step([9] * (65 - held))
    assert "--capacity" in caught.value.hint
    assert decoder.length == held
    assert made == []
    assert np.array_equal(cached(decoder), before)


@pytest.mark.parametrize("length", [-1, 4])
def test_truncate_only_lowers(engine, length):
    decoder = engine.decoder()
    decoder.step(PROMPT[:3])
    with pytest.raises(ValueError, match="cannot truncate a cache of 3 tokens"):
        decoder.truncate(length)
    assert decoder.length == 3


def test_a_written_cache_continues_like_the_one_it_came_from(engine):
    source, copy = engine.decoder(("logits",)), engine.decoder(("logits",))
    source.step(PROMPT[:6])
    arrays = [value.numpy()[:, :, :6].copy() for value in source._cache.values()]
    copy.step([77] * 12)
    copy.write_cache(list(zip(arrays[0::2], arrays[1::2], strict=True)), 6)
    assert copy.length == 6
    assert_same(logits(copy, PROMPT[6:]), logits(source, PROMPT[6:]))


EVERYTHING = tuple(field.name for field in fields(StepOutput))


@pytest.mark.parametrize("rows", [1, 3, 7, 20])
def test_only_the_rows_that_are_wanted_get_a_head(load, rows):
    decoder, cut = (load().decoder(EVERYTHING) for _ in range(2))
    width = 7
    whole, part = decoder.step(PROMPT[:width]), cut.step(PROMPT[:width], rows)
    for name in EVERYTHING:
        found, expected = getattr(part, name), getattr(whole, name)
        assert len(found) == min(rows, width)
        assert_same(found, expected[-rows:])
    assert_same(cached(cut), cached(decoder))


def test_a_graph_without_the_operand_returns_every_row(load):
    decoder = load("portable").decoder()
    assert len(decoder.step(PROMPT[:7], rows=1).token) == 7


@pytest.mark.parametrize(
    ("version", "spins"), [("1.23.2", "0"), ("1.25.1", "0"), ("1.26.0", "1"), ("2.0.0rc1", "1")]
)
def test_threads_spin_where_onnxruntime_can_limit_it(monkeypatch, version, spins):
    """A version that does not know the limit ignores it, and would spin long."""
    monkeypatch.setattr(ort, "__version__", version)
    options = session_options_of(ort, CPU)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins
    if spins == "1":
        limit = options.get_session_config_entry("session.intra_op.spin_duration_us")
        assert limit == str(SPIN_MICROSECONDS)


def test_a_pass_raises_nothing_inside_of_onnxruntime(engine):
    """Its Python asks for this entry in each pass, and a missing one is an exception each time."""
    decoder = engine.decoder()
    assert decoder._run_options.get_run_config_entry("gpu_graph_id") == "0"
    assert decoder.step(PROMPT[:2]).token.shape == (2,)


def test_even_passes_feed_pairs_of_tokens_and_return_the_rows_of_others(graphs):
    paths, shape = graphs
    plain = OrtEngine(paths["gqa"], shape, CPU).decoder(("logits", "hidden"))
    decoder = OrtEngine(paths["gqa"], shape, CPU, even_passes=True).decoder(("logits", "hidden"))
    position = 0
    for width in (1, 2, 3, 5, 1, 4):
        tokens = (2 * PROMPT)[position : position + width]
        found, expected = decoder.step(tokens), plain.step(tokens)
        assert_same(found.logits, expected.logits)
        assert_same(found.hidden, expected.hidden)
        position += width
        assert decoder.length == position
    fed = {binding.input_ids.shape[1] for binding in decoder._bindings.values()}
    assert fed == {2, 4, 6}


def test_even_passes_fill_a_cache_to_its_end_and_cut_rows_as_others_do(graphs):
    paths, shape = graphs
    decoder = OrtEngine(paths["gqa"], shape, CPU, even_passes=True).decoder(("logits",))
    plain = OrtEngine(paths["gqa"], shape, CPU).decoder(("logits",))
    for width, rows in ((CAPACITY - 4, 1), (3, 2), (1, None)):
        tokens = (PROMPT * CAPACITY)[:width]
        found, expected = (each.step(tokens, rows) for each in (decoder, plain))
        assert found.token.shape == expected.token.shape == (rows or width,)
        assert_same(found.logits, expected.logits)
    assert decoder.length == CAPACITY
