"""Trimmed drafts: what they compute, that strict output does not change, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from arbiters import untrained_network
from click.testing import CliRunner
from gguf_files import random_gguf
from msgspec.structs import replace
from trimmed_drafts import OUTPUTS, TOKENS, TRIMMED, engine, some_ids

import cospec
from cospec.calibration.draft_vocabulary import most_frequent, trim, trim_bundle
from cospec.calibration.draft_vocabulary import trimming as trial
from cospec.calibration.draft_vocabulary.frequency import count, coverage, split
from cospec.calibration.draft_vocabulary.trimmed_head import LOWEST
from cospec.calibration.tasks import tiny_tasks
from cospec.calibration.weights.texts import Text
from cospec.errors import BundleError, UsageError
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.runtime.bundle.reader import Bundle, read_manifest
from cospec.runtime.cli.inspect import main as inspect
from cospec.runtime.cli.verify import main as verify
from cospec.runtime.decoding.session import Session
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.engines.onnxruntime import OrtDecoder, OrtEngine
from cospec.runtime.sampling.params import SamplingParams
from cospec.runtime.tensorrt.bundle_engines import engine_specs
from cospec.runtime.text.codec import TextCodec

HEADS = {
    "tied, softcap": "gemma2",
    "untied, bias": "phi",
    "untied, padded": "llama",
    "padded, token renamed": "llama",
}


@pytest.fixture(scope="module", params=list(HEADS))
def pair(request, checkpoint_of, tmp_path_factory) -> tuple[Path, OrtEngine, OrtEngine, np.ndarray]:
    """A bundle, an engine of one of its models, the same trimmed, and the ids that were kept."""
    family, folder = HEADS[request.param], tmp_path_factory.mktemp("heads")
    draft, role = "none", "target"
    if "padded" in request.param:  # a draft that knows more ids than the target: they are cut off
        source, role = checkpoint_of(family, vocab_size=384, seed=1), "draft"
        draft = str(shutil.copytree(source, folder / "draft"))
        if "renamed" in request.param:  # the draft never proposes it
            file = folder / "draft" / "tokenizer.json"
            file.write_text(file.read_text().replace("<|user|>", "<|person|>"))
    options = ExportOptions(str(checkpoint_of(family)), draft, capacity=96)
    bundle = export_bundle(options, folder / "bundle")
    kept, entry = some_ids(bundle), getattr(read_manifest(bundle).models, role)
    trim(bundle / entry.graph, folder / "trimmed/model.onnx", kept)
    onnx.checker.check_model(folder / "trimmed/model.onnx", full_check=True)
    whole = engine(bundle, bundle / entry.graph, entry)
    return bundle, whole, engine(bundle, folder / "trimmed/model.onnx", entry), kept


@pytest.mark.parametrize("width", [1, 12])
def test_every_output_is_of_the_kept_tokens(pair, width):
    _, whole, trimmed, kept = pair
    exact = whole.decoder(OUTPUTS).step(TOKENS[:width])
    found = trimmed.decoder(OUTPUTS).step(TOKENS[:width])
    logits = exact.logits[:, kept].astype(np.float64)
    np.testing.assert_allclose(found.logits[:, kept], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.hidden, exact.hidden, rtol=1e-6)
    others = np.setdiff1d(np.arange(whole.vocab_size), kept)
    assert (found.logits[:, others] == LOWEST).all()
    order = np.argsort(-logits, axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(found.token, kept[order[:, 0]])
    np.testing.assert_array_equal(found.top_ids, kept[order])
    np.testing.assert_allclose(
        found.top_values, np.take_along_axis(logits, order, 1), rtol=1e-5, atol=1e-5
    )
    logsumexp = np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(found.logsumexp, logsumexp, atol=1e-4)
    logprobs = logits - logsumexp[:, None]
    np.testing.assert_allclose(found.entropy, -(np.exp(logprobs) * logprobs).sum(1), atol=1e-3)
    fed = found.next_input_logprob[: width - 1]
    is_kept = np.isin(TOKENS[1:width], kept)
    places = np.searchsorted(kept, TOKENS[1:width][is_kept])
    np.testing.assert_allclose(fed[is_kept], logprobs[:-1][is_kept, places], atol=1e-3)
    assert (fed[~is_kept] <= LOWEST / 2).all()
    assert np.isfinite(found.next_input_logprob).all()
    assert width == 1 or 0 < is_kept.sum() < len(is_kept), "both kinds are fed"


def test_strict_output_is_the_targets_whatever_the_draft_lacks(pair):
    """The model drafts for itself: it only errs where its own choice is none of the kept tokens."""
    bundle, whole, trimmed, kept = pair
    manifest = read_manifest(bundle)
    codec = TextCodec(bundle / manifest.tokenizer, None)
    lacking = accepted = 0
    for start in range(8):
        prompt = TOKENS[start : start + 5].tolist()
        session = Session(manifest, whole, trimmed, codec)
        plain, strict = (
            session.continue_tokens(prompt, max_tokens=30, num_draft_tokens=k).completion()
            for k in (0, 4)
        )
        assert strict.tokens == plain.tokens
        accepted += strict.stats.num_accepted_tokens
        lacking += sum(token not in kept for token in plain.tokens)
    assert accepted, "every output consists of tokens that the draft lacks"
    assert lacking, "no output needs a token that the draft lacks"


def test_only_kept_tokens_are_proposed(pair):
    _, _, trimmed, kept = pair
    drafter = ModelDrafter(trimmed.decoder(), 8)
    proposed: set[int] = set()
    for length in range(1, len(TOKENS)):
        proposed.update(drafter.propose(TOKENS[:length].tolist(), 6))
        drafter.rollback(length)
    assert proposed <= set(kept.tolist())
    assert len(proposed) > 3


def test_a_tied_embedding_stays_whole(tiny_pair_bundle, tmp_path):
    trim(tiny_pair_bundle / "draft/model.onnx", tmp_path / "model.onnx", some_ids(tiny_pair_bundle))
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert shapes["module.lm_head.weight"] == (512, 96)
    assert shapes["module.lm_head.weight_kept"] == (96, TRIMMED)
    stated = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in (*model.graph.value_info, *model.graph.output)
        if value.name in ("kept_logits", "logits", "softmax")
    }
    assert (stated["kept_logits"], stated["logits"], stated["softmax"]) == (TRIMMED, 512, TRIMMED)


@pytest.mark.parametrize("weights", ["exact", "keep"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q5_0"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_draft_with_the_quantised_weights_of_a_file(tmp_path, kind, weights, is_tied):
    """Each output of a head is a row of the packed matrix, with its own scales, zeros and minima."""
    file = random_gguf(tmp_path / "m.gguf", lambda name: kind, layers=1, is_tied=is_tied)
    options = ExportOptions(str(file), str(file), capacity=64, weights=weights)
    bundle = export_bundle(options, tmp_path / "pair")
    kept = some_ids(bundle, 100)
    made = trim_bundle(bundle, tmp_path / "trimmed", kept)
    assert read_manifest(made).models.draft.kept_tokens == 100
    whole, trimmed = (
        engine(each, each / "draft/model.onnx", read_manifest(each).models.draft)
        for each in (bundle, made)
    )
    exact, found = (each.decoder(OUTPUTS).step(TOKENS[:6] % 250) for each in (whole, trimmed))
    np.testing.assert_allclose(found.logits[:, kept], exact.logits[:, kept], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.token, kept[exact.logits[:, kept].argmax(axis=1)])
    assert (np.delete(found.logits, kept, axis=1) == LOWEST).all()


def test_a_bundle(tiny_pair_bundle, trimmed_pair):
    done = CliRunner().invoke(verify, [str(trimmed_pair)])
    assert done.exit_code == 0, done.output
    models = read_manifest(trimmed_pair).models
    assert (models.target.kept_tokens, models.draft.kept_tokens) == (None, TRIMMED)
    assert (
        "proposes    128 of the 512 tokens"
        in CliRunner().invoke(inspect, [str(trimmed_pair)]).output
    )
    before, after = (
        json.loads((bundle / "certificate.json").read_text())
        for bundle in (tiny_pair_bundle, trimmed_pair)
    )
    assert after["parity"] == {"target": before["parity"]["target"]}
    assert after["draft_vocabulary"] == {
        "source": read_manifest(tiny_pair_bundle).seal,
        "kept_tokens": TRIMMED,
    }
    assert b"kept_tokens" not in (tiny_pair_bundle / "cospec.json").read_bytes()


def test_a_draft_that_was_quantised_at_export(tiny_pair_bundle, tmp_path):
    options = ExportOptions("tiny", arbiter="none", weights="fp16", draft_weights="int4")
    bundle = export_bundle(options, tmp_path / "pair")
    made = trim_bundle(bundle, tmp_path / "new", some_ids(bundle))
    draft = read_manifest(made).models.draft
    assert draft.kept_tokens == TRIMMED
    assert draft.kept_weights
    source, session = cospec.load(bundle), cospec.load(made)
    for task in tiny_tasks("validation", 6, 0):
        plain = source.generate(task.prompt, max_tokens=40, num_draft_tokens=0)
        drafted = session.generate(task.prompt, max_tokens=40)
        assert drafted.tokens == plain.tokens
        assert drafted.stats.num_accepted_tokens > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 1.5, "top_k": 300, "repetition_penalty": 1.2},
        {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.3, "min_tokens": 20},
    ],
    ids=str,
)
def test_a_seed_gives_one_text_whatever_the_draft_lacks(trimmed_pair, settings):
    session = cospec.load(trimmed_pair)
    accepted = 0
    for seed in range(4):
        params = SamplingParams(**settings, seed=seed)
        plain, drafted = (
            session.generate(
                "Q: What is 12 + 30?\nA:", max_tokens=40, num_draft_tokens=k, sampling=params
            )
            for k in (0, 4)
        )
        assert drafted.tokens == plain.tokens
        accepted += drafted.stats.num_accepted_tokens
    assert accepted > 0


def test_sampling_may_forbid_all_that_the_draft_has(tiny_pair_bundle, tmp_path):
    """The draft then proposes something else, and only the target decides."""
    manifest = read_manifest(tiny_pair_bundle)
    kept = some_ids(tiny_pair_bundle, 8)
    made = trim_bundle(tiny_pair_bundle, tmp_path / "new", kept)
    forbidden = {int(token): -1e9 for token in kept}
    params = SamplingParams(temperature=1.0, logit_bias=forbidden, seed=0)
    session = cospec.load(made)
    plain, drafted = (
        session.generate("Q:", max_tokens=12, num_draft_tokens=k, sampling=params) for k in (0, 3)
    )
    assert drafted.tokens == plain.tokens
    assert drafted.stats.num_draft_tokens > 0
    assert not set(drafted.tokens) & set(kept.tolist()) - set(manifest.generation.eos_token_ids)


def test_an_arbiter_loses_its_certificate(tiny_pair_bundle, tmp_path):
    from cospec.calibration.arbiter.install import install_arbiter, measured_on
    from cospec.calibration.arbiter.network_graph import export_arbiter
    from cospec.runtime.bundle.certificate import is_certified

    folder = tmp_path / "arbiter"
    folder.mkdir()
    export_arbiter(untrained_network(tiny_pair_bundle), folder / "model.onnx")
    hashes = measured_on(Bundle.open(tiny_pair_bundle), folder / "model.onnx")
    (folder / "certificate.json").write_text(json.dumps({"measured_on": hashes}))
    (folder / "arbiter.json").write_text(json.dumps({"threshold": 0.5}))
    source = shutil.copytree(tiny_pair_bundle, tmp_path / "pair")
    install_arbiter(source, folder)
    assert is_certified(source, read_manifest(source))
    made = trim_bundle(source, tmp_path / "new", some_ids(source))
    assert read_manifest(made).models.arbiter == read_manifest(source).models.arbiter
    assert not is_certified(made, read_manifest(made))
    assert cospec.load(made).generate("Q: What is 2 + 3?", mode="collab", max_tokens=8).tokens


def test_tensorrt_takes_no_trimmed_draft(trimmed_pair):
    manifest = replace(read_manifest(trimmed_pair), lowering="portable")
    with pytest.raises(UsageError, match="the vocabulary of the draft of pair was trimmed"):
        engine_specs(manifest)


def test_a_manifest_says_only_what_can_be(trimmed_pair):
    manifest = read_manifest(trimmed_pair)
    for role, size, message in (
        ("target", 128, "only a draft may lack tokens"),
        ("draft", 513, "models.draft.kept_tokens"),
        ("draft", 7, "models.draft.kept_tokens"),
    ):
        entry = replace(getattr(manifest.models, role), kept_tokens=size)
        with pytest.raises(BundleError, match=message):
            replace(manifest, models=replace(manifest.models, **{role: entry}))


def test_the_most_frequent_stay_and_so_do_the_ends_of_texts(tiny_pair_bundle):
    manifest = read_manifest(tiny_pair_bundle)
    ends = {*manifest.generation.eos_token_ids, manifest.generation.bos_token_id}
    texts = [Text((9, *[500] * 5, *[400] * 3, 300, 200, 300)), Text((1, 2, 450), scored_from=2)]
    counts = count(texts, manifest.vocab_size)
    assert (counts[9], counts[2], counts[450], counts[500]) == (0, 0, 1, 5)
    kept = most_frequent(counts, 8, manifest)
    ranked = [500, 400, 300, 200, 450, *range(512)]
    expected = [*ends, *[token for token in ranked if token not in ends]][:8]
    assert kept.tolist() == sorted(expected)
    assert coverage(counts, np.array([200, 300, 500])) == pytest.approx(8 / 12)


def test_held_out_texts_are_the_last():
    texts = [Text((i, i)) for i in range(11)]
    assert split(texts) == (texts[:9], texts[9:])
    assert split(texts[:2]) == (texts[:1], texts[1:2])


def test_decoders_start_empty(trimmed_pair):
    """Steps are timed after a context, which is all that the decoder holds then."""
    entry = read_manifest(trimmed_pair).models.draft
    decoder = engine(trimmed_pair, trimmed_pair / entry.graph, entry).decoder()
    assert isinstance(decoder, OrtDecoder)
    assert len(trial._time_steps(decoder, 3)) == 3
    assert decoder.length == 64
