"""The policy learns what its data say: from branches, and from rewards."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from cospec.calibration.arbiter.config import TrainingConfig
from cospec.calibration.arbiter.network import A_FEATURES, ArbiterConfig, ArbiterNetwork
from cospec.calibration.arbiter.policy import PolicyGradient, warm_start
from cospec.calibration.arbiter.rollout_jobs import reward

CONFIG = TrainingConfig(warm_epochs=80, warm_learning_rate=0.02, learning_rate=0.05)
F = len(A_FEATURES)


def branches(n: int = 600) -> list[dict]:
    """Only the draft is right where feature 0 is positive; only the target where it is negative."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, F))
    found = [{"features": r.tolist(), "draft": r[0] > 0, "target": r[0] <= 0} for r in rows]
    return [{"correct": True, "branches": found}]


@pytest.mark.parametrize("width", [0, 16])
def test_the_warm_start_separates_what_can_be_separated(width):
    network, losses = warm_start(branches(), ArbiterConfig(width=width), CONFIG)
    assert losses[-1] < losses[0] / 2
    fresh = np.random.default_rng(1).normal(size=(300, F)).astype(np.float32)
    with torch.no_grad():
        kept = network.logits(torch.from_numpy(fresh)).numpy() > 0
    assert (kept == (fresh[:, 0] > 0)).mean() > 0.95


def test_the_same_seed_gives_the_same_network():
    first, second = (warm_start(branches(), ArbiterConfig(), CONFIG)[0] for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_ties_vote_for_the_draft_and_double_failures_for_the_target():
    config = TrainingConfig(warm_epochs=40)
    row = [0.0] * F
    for draft, target, sign in ((True, True, 1), (False, False, -1)):
        record = {"branches": [{"features": row, "draft": draft, "target": target}] * 64}
        network, _ = warm_start([record], ArbiterConfig(), config)
        with torch.no_grad():
            assert float(network.logits(torch.zeros(1, F))) * sign > 0


def test_a_feature_that_never_varied_says_nothing_later():
    constant = 3
    records = branches(64)
    for branch in records[0]["branches"]:
        branch["features"][constant] = 0.5
    network, _ = warm_start(records, ArbiterConfig(), CONFIG)
    rows = torch.zeros(2, F)
    rows[:, constant] = torch.tensor([0.5, 7.0])
    with torch.no_grad():
        trained, elsewhere = network.logits(rows).tolist()
    assert trained == pytest.approx(elsewhere, abs=1e-4)


def groups(network: ArbiterNetwork, rng: random.Random) -> list[list[dict]]:
    """One decision a trajectory: keeping pays where feature 0 is positive, and only there."""
    out = []
    for _ in range(32):
        row = [rng.gauss(0, 1) for _ in range(F)]
        with torch.no_grad():
            p = float(torch.sigmoid(network.logits(torch.tensor([row])))[0])
        group = []
        for _ in range(8):
            kept = rng.random() < p
            right = kept == (row[0] > 0)
            group.append({"features": [row], "kept": [kept], "reward": float(right)})
        out.append(group)
    return out


def test_the_policy_gradient_raises_the_reward():
    torch.manual_seed(0)
    network, rng = ArbiterNetwork(ArbiterConfig(width=16)), random.Random(0)
    learner = PolicyGradient(network, CONFIG)

    def mean(played: list[list[dict]]) -> float:
        return float(np.mean([t["reward"] for group in played for t in group]))

    before = mean(groups(network, rng))
    for _ in range(40):
        figures = learner.update(groups(network, rng))
    after = mean(groups(network, rng))
    assert before < 0.65
    assert after > 0.85
    assert figures["kl"] > 0


def test_speed_is_paid_for_right_answers_only():
    assert reward(False, passes=1, tokens=40, speed_weight=0.1) == 0
    assert reward(True, passes=40, tokens=40, speed_weight=0.1) == 1
    assert reward(True, passes=10, tokens=40, speed_weight=0.1) == pytest.approx(1.075)
