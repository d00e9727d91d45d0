"""The policy-gradient stage: after a kill it ends exactly where it would have ended."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from cospec.calibration.arbiter import policy_gradient as stage
from cospec.calibration.arbiter.config import TrainingConfig
from cospec.calibration.arbiter.network import A_FEATURES, ArbiterConfig, ArbiterNetwork
from cospec.calibration.arbiter.policy_gradient import decisive_tasks, improve
from cospec.calibration.arbiter.run_log import RunLog
from cospec.calibration.tasks.tiny import tiny_tasks

CONFIG = TrainingConfig(steps=3, prompts=4, group=2, learning_rate=0.05)
TASKS = tiny_tasks("train", 12, seed=0)


class Killed(Exception):
    """Stands for the end of the process."""


class FakeWorkers:
    """Makes trajectories without engines: keeping the first token pays. Dies before the given job."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        self.finished = 0

    def run(self, job, items, *_):
        for i, item in enumerate(items):
            if self.finished == self.dies_at:
                raise Killed
            self.finished += 1
            rng = random.Random(f"{item.seed} {item.task.id}")
            yield i, [self._trajectory(rng) for _ in range(item.group)]

    @staticmethod
    def _trajectory(rng: random.Random) -> dict:
        features = [[rng.gauss(0, 1) for _ in A_FEATURES] for _ in range(3)]
        kept = [rng.random() < 0.5 for _ in features]
        right = kept[0]
        return {
            "correct": right,
            "reward": float(right),
            "tokens": 10,
            "passes": 4,
            "features": features,
            "kept": kept,
        }


def run(tmp_path, workers, config=CONFIG):
    torch.manual_seed(0)
    warm = ArbiterNetwork(ArbiterConfig(width=8))
    log = RunLog(tmp_path / "log.json", config)
    said: list[str] = []
    network = improve(workers, warm, TASKS, TASKS[:3], config, tmp_path, log, said.append)
    return network, log, said


def same(first: ArbiterNetwork, second: ArbiterNetwork) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dies_at", [0, 2, 4, 7, 11])
def test_a_killed_job_ends_where_an_undisturbed_one_does(tmp_path, dies_at):
    expected, log, _ = run(tmp_path / "whole", FakeWorkers())
    with pytest.raises(Killed):
        run(tmp_path / "killed", FakeWorkers(dies_at))
    after = FakeWorkers()
    network, resumed, _ = run(tmp_path / "killed", after)
    assert same(network, expected)
    assert resumed.updates() == log.updates()
    assert after.finished == 12 - dies_at, "what was finished before the kill ran again"


def test_a_finished_job_runs_nothing_and_more_steps_continue(tmp_path):
    first, _, _ = run(tmp_path, FakeWorkers())
    idle = FakeWorkers()
    again, _, said = run(tmp_path, idle)
    assert same(first, again)
    assert idle.finished == 0
    assert said == ["continuing after update 3 of 3"]
    longer, log, _ = run(tmp_path, idle, replace(CONFIG, steps=4))
    assert idle.finished == 4
    assert len(log.updates()) == 4
    assert not same(first, longer)


def test_another_job_s_state_is_not_taken_over(tmp_path):
    run(tmp_path, FakeWorkers())
    other = FakeWorkers()
    run(tmp_path, other, replace(CONFIG, learning_rate=0.01))
    assert other.finished == 12


def test_a_damaged_state_starts_over(tmp_path):
    run(tmp_path, FakeWorkers())
    (tmp_path / stage.STATE).write_bytes(b"\x10")
    again = FakeWorkers()
    run(tmp_path, again)
    assert again.finished == 12


def test_half_of_the_prompts_are_decisive_and_none_is_drawn_twice():
    drawn = stage._draw(TASKS, TASKS[:3], CONFIG, 0)
    ids = [task.id for task in drawn]
    assert len(set(ids)) == len(ids) == 4
    assert sum(task in TASKS[:3] for task in drawn) >= 2
    assert stage._draw(TASKS, TASKS[:3], CONFIG, 0) == drawn
    assert stage._draw(TASKS, TASKS[:3], CONFIG, 1) != drawn


def test_a_task_is_decisive_if_a_branch_changed_the_verdict():
    def record(*outcomes: tuple[bool, bool]) -> dict:
        return {"branches": [{"draft": draft, "target": target} for draft, target in outcomes]}

    records = [record((True, True)), record((True, True), (False, True)), record()]
    assert decisive_tasks(TASKS, records) == [TASKS[1]]
