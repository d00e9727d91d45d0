"""What a decoder makes of texts: the same however they are fed, and the same as its checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cospec.calibration.weights.fidelity import read
from cospec.calibration.weights.request import Limits, refusal
from cospec.calibration.weights.texts import WINDOW, Text, read_texts
from cospec.errors import UsageError
from cospec.export.weights.bit_recipes import read_checkpoint
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.models.weights.streamed_model import streamed_model
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.decoding.placement import decoder_engine
from cospec.runtime.engines.onnxruntime import OrtEngine
from cospec.runtime.text.codec import TextCodec


@pytest.fixture(scope="module")
def engine(tiny_pair_bundle) -> OrtEngine:
    manifest = read_manifest(tiny_pair_bundle)
    graph = tiny_pair_bundle / "target/model.onnx"
    return decoder_engine(graph, manifest, "target", manifest.models.target)


def test_perplexity_is_that_of_single_steps(engine):
    """In fp32 no width, no detour and no overlap of passes may change it."""
    tokens = tuple(range(3, 60))
    for scored_from in (1, 2, 3, 20):
        text = Text(tokens, scored_from)
        narrow, wide = read(engine, [text], 2, 64), read(engine, [text, text], 9, 7)
        assert len(narrow.logprobs) == len(tokens) - scored_from == len(wide.logprobs) / 2
        assert wide.perplexity == pytest.approx(narrow.perplexity, rel=1e-4)
        assert narrow.agreement(read(engine, [text], 5, 64).chosen) == 1
    player = engine.decoder(("token", "logits"))
    player.step(tokens[:20])
    logits = player.step(tokens[20:21]).logits[0].astype("float64")
    expected = logits[tokens[21]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    found = read(engine, [Text(tokens, 20)], 4, 64).logprobs[1]
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_checkpoint_reads_as_its_fp32_graph_does(engine):
    windows = np.random.default_rng(0).integers(3, 14, (3, 40)).tolist()
    checkpoint = open_checkpoint(resolve("tiny"))
    with streamed_model(checkpoint, torch.float32) as model:
        logprobs, chosen = read_checkpoint(model.module, model.weights, windows, 512)
        size = int(chosen.max())
        cut, narrow = read_checkpoint(model.module, model.weights, windows, size)
    found = read(engine, [Text(tuple(window)) for window in windows], 4, 64)
    np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-3)
    assert found.agreement(chosen) == 1
    assert size > narrow.max(), "tokens beyond the pair's do not count"
    assert (cut >= logprobs - 1e-6).all()


def test_texts_are_cut_into_windows_that_begin_anew(tiny_pair_bundle, tmp_path):
    manifest = read_manifest(tiny_pair_bundle)
    codec = TextCodec(tiny_pair_bundle / "tokenizer.json", None)
    path = tmp_path / "long.txt"
    path.write_text("One and two are three. " * 2000)
    texts = read_texts(path, codec, manifest, limit=700)
    window = min(WINDOW, manifest.capacity)
    assert len(texts) == 3
    assert {len(text.tokens) for text in texts} == {window}
    assert {text.tokens[0] for text in texts} == {manifest.generation.bos_token_id}
    path.write_text("")
    with pytest.raises(UsageError, match="holds no text"):
        read_texts(path, codec, manifest, limit=1200)


def test_limits():
    found = {"error": None, "perplexity_increase": 0.02, "accuracy_loss": 0.03}
    assert refusal(found, Limits(0.02, 0.03)) is None
    assert refusal(found, Limits(0.01, 0.03)) == "perplexity rises by 2.00%, 1.00% is allowed"
    assert refusal(found, Limits(0.02, 0.02)) == "3.00% fewer tasks are right, 2.00% is allowed"
    assert refusal({"error": "not finite"}, Limits(1, 1)) == "not finite"
