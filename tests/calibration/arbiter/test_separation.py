"""The area under the curve of a warm start, on tasks that it has not seen."""

from __future__ import annotations

import numpy as np
import pytest

from cospec.calibration.arbiter.config import TrainingConfig
from cospec.calibration.arbiter.network import A_FEATURES, ArbiterConfig
from cospec.calibration.arbiter.separation import area, separation

CONFIG = TrainingConfig(warm_epochs=40, warm_learning_rate=0.02)


def records(rule, tasks: int = 40, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(tasks):
        rows = rng.normal(size=(4, len(A_FEATURES)))
        wins = [rule(row, rng) for row in rows]
        found.append(
            {
                "branches": [
                    {"features": row.tolist(), "draft": win, "target": not win}
                    for row, win in zip(rows, wins, strict=True)
                ]
            }
        )
    return found


def test_a_rule_is_found_and_chance_is_not():
    learnable = records(lambda row, rng: bool(row[0] > 0))
    noise = records(lambda row, rng: bool(rng.random() < 0.5), seed=1)
    found, (low, high) = separation({"a": learnable}, ArbiterConfig(), CONFIG)["a"]
    assert low > 0.85
    assert found > 0.95
    found, (low, high) = separation({"b": noise}, ArbiterConfig(), CONFIG)["b"]
    assert low < 0.5 < high


def test_kinds_are_scored_apart():
    learnable = records(lambda row, rng: bool(row[0] > 0))
    opposite = records(lambda row, rng: bool(row[0] <= 0), tasks=4, seed=1)
    found = separation({"many": learnable, "few": opposite}, ArbiterConfig(), CONFIG)
    assert found["many"][0] > 0.8 > 0.3 > found["few"][0]


def test_ties_count_half_and_one_sided_data_say_nothing():
    assert area([1, 1], [True, False])[0] == 0.5
    assert area([2, 1, 1], [True, False, True])[0] == pytest.approx(0.75)
    assert area([1, 2], [True, True]) is None
    assert separation({"none": [{"branches": []}]}, ArbiterConfig(), CONFIG) == {"none": None}


def test_few_mismatches_have_a_wide_interval():
    found, (low, high) = area([2, 2, 2, 1, 1, 1], [True] * 3 + [False] * 3)
    assert found == high == 1
    assert low < 0.5, "three of three may be luck"
    many, (closer, _) = area([2] * 300 + [1] * 300, [True] * 300 + [False] * 300)
    assert many == 1
    assert closer > 0.98
