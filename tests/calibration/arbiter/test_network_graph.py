"""The score graph folds what the network computes: equal to torch at every length, and as exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cospec.calibration.arbiter.network import (
    A_FEATURES,
    ArbiterConfig,
    ArbiterNetwork,
    all_features,
)
from cospec.calibration.arbiter.network_graph import export_arbiter

TARGET_HIDDEN, DRAFT_HIDDEN = 24, 12

CASES = [("a", 0, 8), ("a", 32, 8), ("a", 16, 5), ("hidden", 0, 8), ("hidden", 32, 8)]
"""Feature set, width of the hidden layer, candidates of a row."""


def network_of(features: str, width: int) -> ArbiterNetwork:
    """A random network whose features have means and deviations like those of a trained one."""
    config = ArbiterConfig(
        features=features,  # type: ignore[arg-type]
        width=width,
        target_hidden=TARGET_HIDDEN,
        draft_hidden=DRAFT_HIDDEN,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        network = ArbiterNetwork(config)
        network.mean.uniform_(-8.0, 2.0)
        network.std.uniform_(0.3, 4.0)
    return network


def block_of(k: int, top: int, offset: float, seed: int) -> dict[str, torch.Tensor]:
    """Rows of both models as the decoders give them; half of the tokens are among the candidates."""
    rng = np.random.default_rng(seed)
    named: dict[str, np.ndarray] = {}
    for model, hidden in (("target", TARGET_HIDDEN), ("draft", DRAFT_HIDDEN)):
        values = -np.sort(-rng.normal(size=(k, top)) * 4, axis=1) + offset
        named[f"{model}.top_values"] = values.astype(np.float32)
        named[f"{model}.top_ids"] = np.stack([rng.permutation(100)[:top] for _ in range(k)])
        named[f"{model}.logsumexp"] = (values[:, 0] + rng.exponential(size=k)).astype(np.float32)
        named[f"{model}.entropy"] = rng.exponential(size=k).astype(np.float32)
        named[f"{model}.hidden"] = rng.normal(size=(k, hidden)).astype(np.float32)
    for token, model in (("target.token", "draft"), ("block.drafted", "target")):
        listed = named[f"{model}.top_ids"][np.arange(k), rng.integers(0, top, size=k)]
        named[token] = np.where(rng.random(k) < 0.5, listed, 1000)
    named["target.next_input_logprob"] = -rng.exponential(size=k).astype(np.float32) * 5
    for i, name in enumerate(("position", "mismatches", "run")):
        named[f"block.{name}"] = np.arange(k, dtype=np.float32) // (i + 1)
    return {name: torch.from_numpy(array) for name, array in named.items()}


@pytest.mark.parametrize(("features", "width", "top"), CASES)
def test_the_folded_graph_is_the_network(features, width, top, tmp_path: Path):
    network = network_of(features, width)
    inputs = network.config.inputs
    export_arbiter(network, tmp_path / "score.onnx", top)
    graph = session(tmp_path / "score.onnx")
    scores: list[float] = []
    for seed, (k, offset) in enumerate((k, offset) for k in range(1, 9) for offset in (0.0, 40.0)):
        block = {name: block_of(k, top, offset, seed)[name] for name in inputs}
        with torch.no_grad():
            expected = torch.sigmoid(network.logits(all_features(block))).numpy()
        (score,) = graph.run(None, {name: tensor.numpy() for name, tensor in block.items()})
        assert score == pytest.approx(expected, abs=1e-6)
        scores += score.tolist()
    assert max(scores) - min(scores) > 0.1, "otherwise a constant would do"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_blocks_hold_present_and_absent_candidates():
    """Otherwise the test above would not see a wrong rank."""
    block = block_of(200, 8, 0.0, 0)
    ranks = np.expm1(all_features(block)[:, [8, 9]].numpy()).round()
    assert A_FEATURES[8:10] == (
        "log-rank of the draft's token under the target",
        "log-rank of the target's token under the draft",
    )
    for column in ranks.T:
        assert set(column) == set(range(9))


def test_large_logits_lose_no_digits(tmp_path: Path):
    """Logits are known up to a constant, which the score must not feel."""
    network = network_of("a", 32)
    network.std.fill_(0.05)  # of a feature that hardly moves in training: its weights grow
    export_arbiter(network, tmp_path / "score.onnx")
    graph = session(tmp_path / "score.onnx")
    block = block_of(8, 8, 0.0, 1)
    for name in ("target.top_values", "target.logsumexp", "draft.top_values", "draft.logsumexp"):
        block[name] = (block[name] * 64).round() / 64  # so that a shift by a whole number is exact
    scores = []
    for shift in (0.0, 512.0):
        fed = {name: block[name].numpy() for name in network.config.inputs}
        for name in fed:
            if name.endswith(("top_values", "logsumexp")):
                fed[name] = fed[name] + np.float32(shift)
        scores.append(graph.run(None, fed)[0])
    assert (scores[0] == scores[1]).all()


def test_the_score_graph_names_its_inputs_and_nothing_of_this_machine(tmp_path: Path):
    network = network_of("hidden", 32)
    export_arbiter(network, tmp_path / "score.onnx")
    graph = session(tmp_path / "score.onnx")
    assert [value.name for value in graph.get_inputs()] == list(network.config.inputs)
    assert [(value.name, value.shape) for value in graph.get_outputs()] == [("score", ["k"])]
    assert b".py" not in (tmp_path / "score.onnx").read_bytes()
