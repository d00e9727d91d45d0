"""The ONNX Runtime engine on a real graph: its cache, its bindings, its failures."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from cospec.errors import BackendError, BundleError, PromptError, ResourceError, UsageError
from cospec.runtime.engines import host_memory
from cospec.runtime.engines.onnxruntime import (
    OrtDecoder,
    OrtEngine,
    OrtOptions,
)
from cospec.runtime.engines.ort_session import SPIN_MICROSECONDS, session_options_of
from cospec.runtime.engines.protocol import GraphShape, StepOutput

CAPACITY, VOCAB = 64, 320
POISON = 7
"""The token whose embedding is not finite in the damaged graphs."""

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84]
CPU = OrtOptions(provider="cpu", threads=1)


@pytest.fixture(scope="module")
def graphs(
    tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], GraphShape]:
    """The target of the tiny bundle in two lowerings, each intact and with a poisoned token."""
    from transformers import AutoModelForCausalLM

    from cospec.export import graph

    folder = tmp_path_factory.mktemp("engine")
    model = AutoModelForCausalLM.from_pretrained(tiny_bundle.target, attn_implementation="eager")
    traced = graph.trace(model.eval(), "portable", CAPACITY, VOCAB)
    graph.write(traced, folder / "model.onnx")
    paths = {"gqa": tiny_bundle.root / "target/model.onnx", "portable": folder / "model.onnx"}
    for lowering in ("gqa", "portable"):
        for number in ("nan", "inf"):
            name = f"{lowering}-{number}"
            paths[name] = poisoned(paths[lowering], folder / name, float(number))
    shape = GraphShape(CAPACITY, VOCAB, 64, 8, traced.kv_shapes, "float32")
    return paths, shape


def poisoned(graph: Path, folder: Path, number: float) -> Path:
    """Copy a graph and write `number` into the embedding of POISON."""
    shutil.copytree(graph.parent, folder, ignore=shutil.ignore_patterns("*-*"))
    weights = onnx.load(graph, load_external_data=False).graph.initializer
    (embedding,) = (tensor for tensor in weights if "embed_tokens" in tensor.name)
    assert list(embedding.dims) == [VOCAB, 64]
    where = {entry.key: entry.value for entry in embedding.external_data}
    with (folder / where["location"]).open("r+b") as stream:
        stream.seek(int(where["offset"]) + POISON * 64 * 4)
        stream.write(np.float32(number).tobytes())
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def load(graphs: tuple[dict[str, Path], GraphShape]) -> Callable[..., OrtEngine]:
    paths, shape = graphs
    return lambda name="gqa", options=CPU: OrtEngine(paths[name], shape, options)


@pytest.fixture(scope="module")
def engine(load: Callable[..., OrtEngine]) -> OrtEngine:
    return load()


def pointers(decoder: OrtDecoder) -> list[int]:
    return [value.data_ptr() for value in decoder._cache.values()]


def cached(decoder: OrtDecoder) -> np.ndarray:
    """Keys and values of what the cache holds, [2 * layers, heads, length, dim]."""
    return np.stack([v.numpy()[0, :, : decoder.length] for v in decoder._cache.values()])


def logits(decoder: OrtDecoder, tokens: list[int]) -> np.ndarray:
    found = decoder.step(tokens).logits
    assert found is not None
    return found.copy()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to rounding, measured as the parity gate does: relative to the scale of all logits."""
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def count_bindings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the width of every binding made from now on."""
    made: list[int] = []
    original = OrtDecoder._bind

    def bind(self: OrtDecoder, width: int, kept: int) -> object:
        made.append(width)
        return original(self, width, kept)

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
