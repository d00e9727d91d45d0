"""What a worked solution says about the mismatches on the way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cospec.calibration.arbiter.config import TrainingConfig
from cospec.calibration.arbiter.network import ArbiterConfig, ArbiterNetwork
from cospec.calibration.arbiter.network_graph import export_features
from cospec.calibration.arbiter.policy import weights_of
from cospec.calibration.arbiter.rollout_jobs import NEVER
from cospec.calibration.arbiter.rollouts import RolloutRunner, RolloutSetup
from cospec.calibration.arbiter.solutions import Place, SolutionJob, along, read_solution
from cospec.calibration.arbiter.training import train_arbiter
from cospec.calibration.quality.workers import Scale
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.runtime.arbitration.baselines import AlwaysDraft

WEIGHTS = weights_of(ArbiterNetwork(ArbiterConfig()))


@pytest.fixture(scope="module")
def runner(tiny_pair_bundle, tmp_path_factory) -> RolloutRunner:
    graph = tmp_path_factory.mktemp("solutions") / "graph.onnx"
    export_features(ArbiterConfig(), graph)
    return RolloutSetup(tiny_pair_bundle, graph, ArbiterConfig(), num_draft_tokens=1)()


def test_the_targets_own_answer_sides_with_the_target(runner):
    met = 0
    for task in tiny_tasks("train", 6, seed=3):
        runner.begin_job(task, WEIGHTS)
        answer = runner.rollout(NEVER)
        text = runner.text(answer.tokens)
        if runner.session.codec.encode_rendered(text) != answer.tokens[:-1]:
            continue  # the text has other tokens than the model wrote
        found = read_solution(runner, SolutionJob(replace(task, solution=text)))["branches"]
        assert all(each["target"] and not each["draft"] for each in found)
        assert all(each["tokens"][1] in answer.tokens for each in found)
        read = np.array([each["features"] for each in found])
        for decision in answer.decisions:
            if decision.position < len(answer.tokens) - 1:
                difference = np.abs(read - decision.features).max(axis=1)
                assert difference.min() < 1e-3, "as in the loop"
                met += 1
    assert met >= 6


def test_the_drafts_answer_sides_with_the_draft(runner):
    won = 0
    for task in tiny_tasks("train", 6, seed=3):
        answer = runner.session.generate(task.prompt, arbiter=AlwaysDraft(), mode="collab")
        found = read_solution(runner, SolutionJob(replace(task, solution=answer.text)))["branches"]
        won += sum(each["draft"] and not each["target"] for each in found)
    assert won >= 6


def test_blocks_end_where_the_loop_would_end_them():
    solution = [1, 2, 3, 4, 5, 6]
    drafted = [1, 2, 9, 4, 5, 6]
    chosen = [8, 8, 3, 4, 8, 6]
    assert list(along(drafted, chosen, solution, 3)) == [
        Place(0, position=0, mismatches=0, run=0),
        Place(1, position=1, mismatches=1, run=1),
        Place(2, position=2, mismatches=2, run=2),
        Place(4, position=1, mismatches=0, run=0),
    ]
    assert [place.position for place in along(drafted, chosen, solution, 1)] == [0] * 4


def test_training_reads_solutions_once_and_says_what_they_hold(tiny_pair_bundle, tmp_path):
    tasks = [
        replace(task, solution=f" {task.answer}" if i else None)
        for i, task in enumerate(tiny_tasks("train", 5, seed=3))
    ]
    config = TrainingConfig(warm_items=2, branches=1, warm_epochs=2, steps=0, solutions=3)
    lines: list[str] = []
    for _ in range(2):
        train_arbiter(tiny_pair_bundle, tasks, config, tmp_path, Scale(), lines.append)
    records = [json.loads(line) for line in (tmp_path / "solutions.jsonl").open()]
    assert [record["key"].split()[0] for record in records] == [task.id for task in tasks[1:4]]
    log = json.loads((tmp_path / "log.json").read_text())
    assert any(line.startswith("mismatches in solutions: ") for line in lines)
    cells = json.dumps(log)
    assert "mismatches in solutions" in cells
