"""The static ensemble as a graph: the decisions of the baseline, and a score to set a threshold on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from arbiters import TOP, block_of_distributions
from click.testing import CliRunner

from cospec.calibration.arbiter.ensemble_graph import INPUTS, export_ensemble
from cospec.calibration.cli import main
from cospec.runtime.arbitration.baselines import StaticEnsemble
from cospec.runtime.arbitration.learned import LearnedArbiter
from cospec.runtime.bundle.reader import Bundle


def test_the_graph_decides_like_the_baseline(tmp_path: Path):
    export_ensemble(tmp_path / "model.onnx", TOP)
    arbiter = LearnedArbiter(tmp_path / "model.onnx")
    kept: list[bool] = []
    for k in range(1, 9):
        logits = np.random.default_rng(k).normal(size=(2, k, 12)) * 2
        target, draft = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        block = block_of_distributions(target, draft)
        scores = arbiter.score(block)
        expected = StaticEnsemble(0.5).score(block)
        assert (scores > 0.5).tolist() == expected.astype(bool).tolist()
        assert ((scores >= 0) & (scores <= 1)).all()
        kept += expected.astype(bool).tolist()
    assert 0 < sum(kept) < len(kept), "otherwise a constant would do"


def test_the_score_is_half_of_one_more_than_the_preference(tmp_path: Path):
    target = np.array([[0.5, 0.25, 0.15, 0.06, 0.03, 0.01]])
    draft = np.array([[0.125, 0.75, 0.06, 0.04, 0.02, 0.005]])
    export_ensemble(tmp_path / "model.onnx", TOP)
    score = LearnedArbiter(tmp_path / "model.onnx").score(block_of_distributions(target, draft))
    mean_of_d, mean_of_t = (0.25 + 0.75) / 2, (0.5 + 0.125) / 2
    assert score == pytest.approx([(1 + mean_of_d - mean_of_t) / 2], abs=1e-6)


def test_it_is_certified_without_training(tiny_pair_bundle, tmp_path: Path):
    """`ensemble` in place of a folder; the bundle has no arbiter before."""
    bundle = shutil.copytree(tiny_pair_bundle, tmp_path / "pair")
    arguments = ["--engine-dir", str(bundle), "--arbiter", "ensemble", "--tasks", "tiny:validation"]
    result = CliRunner().invoke(
        main, ["certify", *arguments, "--items", "6", "--max-tokens", "48", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["training"] is None
    assert found["modes"]["collab"]["n"] == 6
    opened = Bundle.open(bundle)
    assert opened.manifest.models.arbiter is not None
    assert opened.manifest.models.arbiter.threshold == found["threshold"]
    graph = LearnedArbiter(bundle / "arbiter" / "model.onnx")
    assert {f"target.{name}" for name in graph.target_outputs} < set(INPUTS)
    left = sorted(file.name for file in (tmp_path / "pair.calibration" / "ensemble").iterdir())
    assert left == ["arbiter.json", "certificate.json", "model.onnx"]


def test_another_word_is_not_taken_for_an_arbiter(tiny_pair_bundle):
    arguments = ["--engine-dir", str(tiny_pair_bundle), "--arbiter", "ensmeble"]
    result = CliRunner().invoke(main, ["certify", *arguments, "--tasks", "tiny:validation"])
    assert result.exit_code == 2
    assert "'ensmeble' does not exist" in result.output
