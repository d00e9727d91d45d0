"""cospec-calibrate weights: what is measured, what is refused, and what is written."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cospec
from cospec.calibration.cli import main
from cospec.calibration.weights import candidates, rewrite
from cospec.calibration.weights import format_speed as speed
from cospec.calibration.weights.fidelity import read
from cospec.calibration.weights.format_speed import time_combinations
from cospec.calibration.weights.request import Limits, refusal
from cospec.calibration.weights.texts import WINDOW, Text, read_texts
from cospec.errors import UsageError
from cospec.runtime.bundle.reader import Bundle, read_manifest
from cospec.runtime.decoding.placement import graph_shape
from cospec.runtime.engines.onnxruntime import OrtEngine
from cospec.runtime.text.codec import TextCodec


def call(bundle: Path, output: Path, *arguments: object) -> Any:
    options = ["--engine-dir", bundle, "--output", output, *arguments]
    return CliRunner().invoke(main, ["weights", *map(str, options)])


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Timings of a few tokens: no test depends on their size."""
    monkeypatch.setattr(speed, "TOKENS", 6)
    monkeypatch.setattr(speed, "ROUNDS", 2)


@pytest.fixture(scope="module")
def made(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("made") / "pair"
    arguments = ("--tasks", "tiny:validation", "--items", 12, "--formats", "fp32,int8,int4")
    limits = ("--max-perplexity-increase", "50%", "--max-accuracy-loss", "100%")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "TOKENS", 6)
        done = call(tiny_pair_bundle, output, *arguments, *limits, "--json")
    assert done.exit_code == 0, done.output
    return output, json.loads(done.stdout)


def test_the_object(made, tiny_pair_bundle):
    _, facts = made
    assert list(facts["formats"]) == ["fp32", "int8", "int4"]
    exact = facts["formats"]["fp32"]
    assert (exact["perplexity_increase"], exact["agreement"], exact["accuracy_loss"]) == (0, 1, 0)
    assert exact["strict_differs"] == 0
    for found in facts["formats"].values():
        assert found["refused"] is None
        assert 1 < found["perplexity"] < 2
        assert 0.9 < found["agreement"] <= 1
        assert found["bytes"]["draft"] < found["bytes"]["target"]
    assert facts["formats"]["int4"]["perplexity_increase"] != 0
    assert facts["data"]["items"] == 12
    assert facts["data"]["scored_tokens"] > 100
    fastest = facts["speed"][0]
    assert facts["chosen"] == {"target": fastest["target"], "draft": fastest["draft"]}
    assert fastest["rounds"] > facts["speed"][-1]["rounds"] or len(facts["speed"]) <= 4


def test_the_bundle(made):
    output, facts = made
    models = Bundle.open(output).manifest.models
    shown = [models.target.weights or "fp32", models.draft.weights or "fp32"]
    assert shown == [facts["chosen"]["target"], facts["chosen"]["draft"]]
    certificate = json.loads((output / "certificate.json").read_text())
    assert certificate["weights"]["formats"] == facts["formats"]
    assert certificate["weights"]["target"] == facts["chosen"]["target"]
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["draft", "target"]
    assert cospec.load(output).generate("Q: What is 2 + 3?\nA:", max_tokens=4).tokens


def test_a_spoiled_format_is_refused_with_the_figures(tiny_pair_bundle, tmp_path, monkeypatch):
    real = rewrite.quantise_channels

    def spoiled(weight, *, reduce_range):
        packed, scales = real(weight, reduce_range=reduce_range)
        return packed, scales[::-1].copy()

    monkeypatch.setattr(rewrite, "quantise_channels", spoiled)
    arguments = ("--tasks", "tiny:validation", "--items", 8)
    done = call(tiny_pair_bundle, tmp_path / "a", *arguments, "--formats", "fp32,int8", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert "perplexity rises by" in facts["formats"]["int8"]["refused"]
    assert facts["formats"]["int8"]["perplexity_increase"] > 0.05
    assert facts["chosen"]["target"] == "fp32"
    assert {each["target"] for each in facts["speed"]} == {"fp32"}
    forced = call(tiny_pair_bundle, tmp_path / "b", *arguments, "--target-format", "int8")
    assert forced.exit_code == 5, forced.output
    assert "perplexity rises by" in forced.stderr
    assert "1.00% is allowed" in forced.stderr
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob(".b.staging*"))


def test_forced_formats_on_a_text_file(tiny_pair_bundle, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Q: What is 12 + 30?\nA: 12 + 30 = 42. The answer is 42.\n" * 12)
    done = call(
        tiny_pair_bundle, tmp_path / "new", "--texts", text, "--formats", "fp32",
        "--target-format", "int8-rows", "--draft-format", "int4",
        "--max-perplexity-increase", "0.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    models = read_manifest(tmp_path / "new").models
    assert (models.target.weights, models.draft.weights) == ("int8-rows", "int4")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["format", "size", "perplexity"]
    assert lines[-1] == "written: target int8-rows, draft int4"
    certificate = json.loads((tmp_path / "new/certificate.json").read_text())
    assert certificate["weights"]["data"]["texts"] == "text.txt"
    assert "accuracy" not in certificate["weights"]["formats"]["int8-rows"]


def test_without_texts_and_tasks_the_default_text_is_read_with_one_format_in_memory(
    tiny_pair_bundle, tmp_path, monkeypatch
):
    alive, most = weakref.WeakSet(), []

    class Counted(OrtEngine):
        def __init__(self, graph, *others):
            super().__init__(graph, *others)
            alive.add(self)
            most.append(Counter(engine.graph.parent.name for engine in alive))

    monkeypatch.setattr(candidates, "OrtEngine", Counted)
    arguments = ("--formats", "fp32,fp16,int8", "--text-tokens", 300, "--strict-prompts", 1)
    done = call(tiny_pair_bundle, tmp_path / "new", *arguments, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["data"]["texts"] == "default"
    assert facts["data"]["scored_tokens"] > 250
    assert len(most) > 6
    assert all(count == {"target": 1} or count == {"target": 1, "draft": 1} for count in most)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tasks", "tiny:validation", "--formats", "int3"], 2, "unknown weight format 'int3'"),
        (["--tasks", "tiny:validation", "--target-format", "q4"], 2, "unknown weight format 'q4'"),
        (["--tasks", "tiny:exam"], 2, "names no tasks"),
        (["--texts", "absent.txt"], 2, "absent.txt: cannot be read"),
        (["--texts", "EMPTY"], 2, "holds no text"),
        (["--texts", "LATIN"], 2, "is not UTF-8: invalid continuation byte at byte 3"),
        (["--tasks", "tiny:validation", "--items", "0"], 2, "--items is 0"),
        (["--tasks", "tiny:validation", "--max-accuracy-loss", "a lot"], 2, "is not a share"),
        (["--tasks", "tiny:validation", "--max-perplexity-increase", "nan"], 2, "is not a share"),
    ],
)
def test_bad_input(tiny_pair_bundle, tmp_path, arguments, code, message):
    (tmp_path / "EMPTY").write_text("\n  \n")
    (tmp_path / "LATIN").write_bytes(b"caf\xe9 noir")
    given = [str(tmp_path / a) if a in ("EMPTY", "LATIN") else a for a in arguments]
    done = call(tiny_pair_bundle, tmp_path / "new", *given)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "converting" not in done.stderr, "refused before the work begins"
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_is_there_is_kept_before_anything_is_computed(
    tiny_pair_bundle, made, monkeypatch
):
    monkeypatch.setattr(rewrite, "quantise_channels", None)
    done = call(tiny_pair_bundle, made[0], "--tasks", "tiny:validation")
    assert done.exit_code == 7
    assert "--force" in done.stderr


def test_limits():
    found = {"error": None, "perplexity_increase": 0.02, "accuracy_loss": 0.03}
    assert refusal(found, Limits(0.02, 0.03)) is None
    assert refusal(found, Limits(0.01, 0.03)) == "perplexity rises by 2.00%, 1.00% is allowed"
    assert refusal(found, Limits(0.02, 0.02)) == "3.00% fewer tasks are right, 2.00% is allowed"
    assert refusal({"error": "not finite"}, Limits(1, 1)) == "not finite"


def test_perplexity_is_that_of_single_steps(tiny_pair_bundle):
    """In fp32 no width, no detour and no overlap of passes may change it."""
    manifest = read_manifest(tiny_pair_bundle)
    shape = graph_shape(manifest, manifest.models.target)
    engine = OrtEngine(tiny_pair_bundle / "target/model.onnx", shape)
    tokens = tuple(range(3, 60))
    for scored_from in (1, 2, 3, 20):
        text = Text(tokens, scored_from)
        narrow, wide = read(engine, [text], 2, 64), read(engine, [text, text], 9, 7)
        assert len(narrow.logprobs) == len(tokens) - scored_from == len(wide.logprobs) / 2
        assert wide.perplexity == pytest.approx(narrow.perplexity, rel=1e-4)
        assert narrow.agreement(read(engine, [text], 5, 64)) == 1
    player = engine.decoder(("token", "logits"))
    player.step(tokens[:20])
    logits = player.step(tokens[20:21]).logits[0].astype("float64")
    expected = logits[tokens[21]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    found = read(engine, [Text(tokens, 20)], 4, 64).logprobs[1]
    assert found == pytest.approx(expected, abs=1e-4)


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


def test_the_fastest_counts_by_its_median(monkeypatch):
    """A single lucky time wins nothing, and only the leading targets meet every draft."""
    rates = {
        ("fp32", "fp32"): repeat(10.0),
        ("int8", "int8"): repeat(30.0),
        ("int8", "fp32"): repeat(25.0),
        ("int8", "int4"): chain([90.0], repeat(5.0)),
        ("int4", "int4"): repeat(20.0),
        ("int4", "int8"): repeat(31.0),
        ("int4", "fp32"): repeat(1.0),
    }

    def time(combination, session_of, prompts):
        combination.rates.append(next(rates[combination.target, combination.draft]))

    monkeypatch.setattr(speed, "ROUNDS", 5)
    monkeypatch.setattr(speed, "_time", time)
    names = ["fp32", "int8", "int4"]
    ranked = time_combinations(names, names, lambda *_: None, [])
    assert (ranked[0].target, ranked[0].draft) == ("int4", "int8")
    assert [len(c.rates) for c in ranked] == [5, 5, 5, 5, 1, 1, 1]
    assert ("fp32", "int8") not in {(c.target, c.draft) for c in ranked}
