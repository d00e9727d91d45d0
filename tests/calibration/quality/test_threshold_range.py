"""Thresholds at which an arbiter decides alike share an answer, and only those."""

from __future__ import annotations

from dataclasses import replace

from cospec.calibration.quality.mode_runner import ModeJob, ModeRunner, QualityConfig
from cospec.calibration.quality.mode_summary import Answer
from cospec.calibration.quality.modes import parse_modes
from cospec.calibration.tasks.resolve import resolve_tasks
from cospec.models import tiny_pair

ITEMS = 12


def test_thresholds_that_decide_alike_share_an_answer(tiny_pair_bundle, monkeypatch):
    arbiter = tiny_pair.ARBITER / "model.onnx"
    thresholds = (0.0, 0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.99, 1.0)
    modes = parse_modes(["collab"], thresholds=thresholds, graphs=[arbiter])
    tasks = resolve_tasks("tiny:validation", items=ITEMS)
    config = QualityConfig(tiny_pair_bundle)
    runner = ModeRunner(config, modes)

    def figures(answers: list[Answer]) -> list[Answer]:
        return [replace(each, seconds=0.0) for each in answers]

    apart = {
        task.id: figures([runner.answers(ModeJob(task, (mode,)))[0] for mode in modes])
        for task in tasks
    }
    assert len({each for answers in apart.values() for each in answers}) > ITEMS, "they do differ"
    generated: list[str] = []
    answer = ModeRunner._answer
    monkeypatch.setattr(
        ModeRunner,
        "_answer",
        lambda self, task, mode, *limit: (
            generated.append(mode.name) or answer(self, task, mode, *limit)
        ),
    )
    for task in tasks:
        turned = (*modes[4:], *modes[:4])
        found = dict(zip(turned, figures(runner.answers(ModeJob(task, turned))), strict=True))
        assert [found[mode] for mode in modes] == apart[task.id]
    assert 2 * ITEMS <= len(generated) < 0.7 * ITEMS * len(modes)
