"""Calibrating an arbiter: train it, choose its threshold, certify it, put it into the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...export.arbiter_folder import read_arbiter
from ...runtime.bundle.certificate import write_certificate
from ...runtime.bundle.durable import write_json
from ...runtime.bundle.reader import Bundle
from ..quality.measurement import play_modes
from ..quality.mode_summary import Answer, oracle, paired_tests, summarise, tokens_per_target_pass
from ..quality.modes import PLAIN, Mode
from ..quality.worker import QualityConfig
from ..tasks.item import Task
from ..tasks.resolve import resolve_tasks
from .config import TrainingConfig
from .curve import curve_modes, curve_points, play_finer
from .install import embed_arbiter, measured_on
from .network import export_arbiter, save_network
from .threshold import Point, fastest_with_gain, fastest_without_loss
from .training import train_arbiter

HELD_OUT_SHARE = 5
"""One task in this many is held out where no validation tasks are given."""

TINY_TRAINING_ITEMS = 4000


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, on what.

    Attributes:
        bundle: the bundle's folder.
        tasks: training tasks, as `resolve_tasks` reads them.
        validation: tasks that choose the threshold; None holds out a part of `tasks`.
        items: training tasks to use.
        validation_items: validation tasks to use.
        work: folder for journals, weights and the log.
        processes: that play at the same time.
    """

    bundle: Path
    tasks: str
    validation: str | None
    items: int | None
    validation_items: int
    work: Path
    processes: int


def calibrate_arbiter(
    request: CalibrationRequest, config: TrainingConfig, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train, choose the threshold, certify and embed; return what went into the certificate.

    Raises:
        UsageError: tasks that cannot be used.
        BundleError: a damaged bundle.
        BackendError: a process died, or an engine failed.
    """
    training, validation = split_tasks(request, config.seed)
    say(f"training on {len(training)} tasks, choosing on {len(validation)}")
    network = train_arbiter(
        request.bundle, training, config, request.work, request.processes, say
    ).network
    folder = request.work / "arbiter"
    folder.mkdir(exist_ok=True)
    save_network(network, folder / "network.safetensors")
    graph = folder / "model.onnx"
    export_arbiter(network, graph)

    say("measuring the curve of quality and speed")
    about = {
        "data": {
            "training": request.tasks,
            "validation": request.validation or f"held out of {request.tasks}",
            "items": len(validation),
        },
        "training": asdict(config),
    }
    playing = QualityConfig(
        request.bundle, config.num_draft_tokens, config.max_tokens, request.processes
    )
    return certify_arbiter(folder, validation, playing, request.work / "curve.jsonl", about)


def certify_arbiter(
    folder: Path,
    tasks: Sequence[Task],
    playing: QualityConfig,
    journal: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Choose the thresholds of an arbiter, certify it and embed it; return the certificate.

    Args:
        folder: of the arbiter's `model.onnx`; settings and certificate are written beside it.
        tasks: that choose the threshold.
        playing: the bundle, and how it is played.
        journal: of answers; a job that was stopped goes on from it.
        about: what the certificate says beside the figures: `data` and `training`.

    Raises:
        UsageError: the bundle cannot play the arbiter.
        BundleError: a damaged bundle.
        BackendError: a process died, or an engine failed.
    """
    graph = folder / "model.onnx"
    curve = curve_modes("collab", graph)
    answers = play_modes(playing, tasks, [*PLAIN, *curve], journal)
    play_finer(playing, tasks, curve, answers, journal)
    result = {**certificate(tasks, answers, curve), **about}
    bundle = Bundle.open(playing.bundle, verify=False)  # `embed_arbiter` hashes every file
    result["measured_on"] = measured_on(bundle, graph)
    write_certificate(folder, result)
    settings = {"threshold": result["threshold"], "speed_first": result["speed_first"]}
    write_json(folder / "arbiter.json", settings)
    embed_arbiter(playing.bundle, folder)
    return result


def training_of(folder: Path) -> dict[str, Any]:
    """Return `data` and `training` of an arbiter's earlier certificate; empty if it has none."""
    earlier = read_arbiter(folder).quality or {}
    return {"data": earlier.get("data", {}), "training": earlier.get("training")}


def split_tasks(request: CalibrationRequest, seed: int) -> tuple[list[Task], list[Task]]:
    """Return training and validation tasks, with no task in both."""
    items = request.items
    if items is None and request.tasks.startswith("tiny:"):
        items = TINY_TRAINING_ITEMS
    training = resolve_tasks(request.tasks, items=items, seed=seed)
    if request.validation is not None:
        validation = resolve_tasks(request.validation, items=request.validation_items, seed=seed)
        # By what is asked: ids count the lines of a file, and two files may both begin with 1.
        asked = {repr(task.prompt) for task in training}
        shared = [task.id for task in validation if repr(task.prompt) in asked]
        if shared:
            raise UsageError(
                f"{len(shared)} tasks are in --tasks and in --validation, such as {min(shared)}",
                hint="a threshold chosen on training tasks is too hopeful; keep the two apart",
            )
        return training, validation
    held = training[::HELD_OUT_SHARE][: request.validation_items]
    ids = {task.id for task in held}
    training = [task for task in training if task.id not in ids]
    if not training or not held:
        raise UsageError("there are too few tasks to train on some and choose on others")
    return training, held


def certificate(
    tasks: Sequence[Task],
    answers: dict[str, list[Answer]],
    curve: Sequence[Mode],
) -> dict[str, Any]:
    """Choose the thresholds and sum up what was measured."""
    kinds = [task.kind for task in tasks]
    points = curve_points(curve, answers)
    target = [answer.correct for answer in answers["target"]]
    best = fastest_with_gain(points, target)
    fast = fastest_without_loss(points, target)
    played = {mode.threshold: answers[mode.name] for mode in curve}
    chosen = {
        **{name: answers[name] for name in ("target", "strict", "draft")},
        "collab": played[best.threshold],
    }
    tested = [Mode(name, "collab" if name == "collab" else "strict") for name in chosen]
    return {
        "threshold": best.threshold,
        "speed_first": None if fast is None else _point(fast, played[fast.threshold]),
        "modes": {name: summarise(kinds, of_mode) for name, of_mode in chosen.items()},
        "override_precision": override_precision(chosen["collab"], target),
        "oracle": oracle(chosen),
        "mcnemar": paired_tests(tested, chosen),
        "curve": [
            _point(point, played[point.threshold])
            for point in sorted(points, key=lambda point: point.threshold)
        ],
    }


def _point(point: Point, answers: Sequence[Answer]) -> dict[str, float]:
    return {
        "threshold": point.threshold,
        "accuracy": point.accuracy,
        "tokens_per_target_pass": tokens_per_target_pass(answers),
        "target_passes_per_item": point.target_passes_per_item,
    }


def override_precision(collab: Sequence[Answer], target: Sequence[bool]) -> float | None:
    """Return the share of improvements among the answers whose verdict an override changed."""
    changed = [
        answer.correct
        for answer, before in zip(collab, target, strict=True)
        if answer.overrides and answer.correct != before
    ]
    return sum(changed) / len(changed) if changed else None
