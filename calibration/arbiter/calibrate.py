"""Calibrating an arbiter: train it, choose its threshold, certify it, install it in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError, UsageError
from ...export.arbiter_folder import read_arbiter
from ...runtime.bundle.certificate import write_certificate
from ...runtime.bundle.durable import write_json
from ...runtime.bundle.reader import Bundle
from ..quality.mode_runner import QualityConfig
from ..quality.mode_summary import Answer, summarise_modes, tokens_per_target_pass
from ..quality.modes import Mode
from ..quality.workers import Scale
from ..tasks.item import Task
from ..tasks.resolve import label_of, resolve_tasks
from .config import TrainingConfig
from .install import install_arbiter, measured_on
from .threshold import (
    Point,
    curve_points,
    fastest_with_gain,
    fastest_without_loss,
    measure_curves,
)

HELD_OUT_SHARE = 5
"""One task in this many is held out if no validation tasks are given."""

TINY_TRAINING_ITEMS = 4000
SETTINGS = "arbiter.json"


@dataclass(frozen=True)
class CalibrationRequest(Scale):
    """The bundle, the tasks and the scale of a calibration.

    Attributes:
        bundle: the bundle's folder.
        tasks: training tasks, as `resolve_tasks` reads them.
        validation: tasks that choose the threshold; None holds out a part of `tasks`.
        items: number of training tasks; None for all, of tiny tasks 4000.
        validation_items: number of validation tasks.
        work: folder for journals, weights and the log.
    """

    bundle: Path
    tasks: str
    validation: str | None
    items: int | None
    validation_items: int
    work: Path


def calibrate_arbiter(
    request: CalibrationRequest, config: TrainingConfig, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Train, choose the threshold, certify and install; return the certificate.

    Args:
        request: the bundle, the tasks and the scale.
        config: every hyper-parameter.
        progress: called with a line per stage and update.

    Raises:
        UsageError: tasks that cannot be used.
        BundleError: a damaged bundle.
        BackendError: a worker died again and again, or an engine failed.
        MissingExtraError: torch or matplotlib is not installed.
    """
    _require("torch", "matplotlib")  # checked now, not after the rollouts
    from .network import save_network
    from .network_graph import export_arbiter
    from .training import train_arbiter

    training, validation = split_tasks(request, config.seed)
    progress(f"training on {len(training)} tasks, choosing the threshold on {len(validation)}")
    scale = Scale(**{each.name: getattr(request, each.name) for each in fields(Scale)})
    network = train_arbiter(request.bundle, training, config, request.work, scale, progress).network
    folder = request.work / "arbiter"
    folder.mkdir(exist_ok=True)
    save_network(network, folder / "network.safetensors")
    export_arbiter(network, folder / "model.onnx")

    progress("measuring the curve of quality and speed")
    about = {
        "data": {
            "training": label_of(request.tasks),
            "validation": (
                label_of(request.validation)
                if request.validation
                else f"held out of {label_of(request.tasks)}"
            ),
            "items": len(validation),
        },
        "training": asdict(config),
    }
    measuring = QualityConfig(
        request.bundle, config.num_draft_tokens, config.max_tokens, **asdict(scale)
    )
    return certify_arbiter(folder, validation, measuring, request.work / "curve.jsonl", about)


def certify_arbiter(
    folder: Path,
    tasks: Sequence[Task],
    config: QualityConfig,
    journal: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Choose the thresholds of an arbiter, certify it and install it; return the certificate.

    Args:
        folder: holds the arbiter's `model.onnx`; settings and certificate are written beside it.
        tasks: tasks that choose the threshold.
        config: the bundle, and how it is run.
        journal: of answers; a job that was stopped continues from it.
        about: `data` and `training`, which the certificate repeats.

    Raises:
        UsageError: the bundle cannot run the arbiter.
        BundleError: a damaged bundle.
        BackendError: a worker died again and again, or an engine failed.
    """
    graph = folder / "model.onnx"
    curves, answers = measure_curves(config, tasks, {"collab": graph}, journal)
    result = {**certificate(tasks, answers, curves["collab"]), **about}
    bundle = Bundle.open(config.bundle, verify=False)  # `install_arbiter` hashes every file
    result["measured_on"] = measured_on(bundle, graph)
    write_certificate(folder, result)
    settings = {"threshold": result["threshold"], "speed_first": result["speed_first"]}
    write_json(folder / SETTINGS, settings)
    install_arbiter(config.bundle, folder)
    return result


def work_folder(bundle: Path) -> Path:
    """Return the default folder for what calibrating a bundle leaves: BUNDLE.calibration, beside it."""
    return bundle.with_name(f"{bundle.name}.calibration")


def ensemble_folder(bundle: Path) -> Path:
    """Make the folder of an arbiter that needs no training, the static ensemble, and return it.

    Raises:
        MissingExtraError: torch is not installed.
        BundleError: a damaged bundle.
    """
    _require("torch")
    from .ensemble_graph import export_ensemble

    folder = work_folder(bundle) / "ensemble"
    folder.mkdir(parents=True, exist_ok=True)
    top = Bundle.open(bundle, verify=False).manifest.summary_top
    export_ensemble(folder / "model.onnx", top)
    return folder


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "calibrate", "Making an arbiter")


def training_of(folder: Path) -> dict[str, Any]:
    """Return `data` and `training` of an arbiter's earlier certificate; empty if it has none."""
    has_settings = (folder / SETTINGS).is_file()  # a graph alone can be certified too
    earlier = (read_arbiter(folder).quality or {}) if has_settings else {}
    return {"data": earlier.get("data", {}), "training": earlier.get("training")}


def split_tasks(request: CalibrationRequest, seed: int) -> tuple[list[Task], list[Task]]:
    """Return training and validation tasks, with no task in both."""
    items = request.items
    if items is None and request.tasks.startswith("tiny:"):
        items = TINY_TRAINING_ITEMS
    training = resolve_tasks(request.tasks, items=items, seed=seed)
    if request.validation is not None:
        validation = resolve_tasks(request.validation, items=request.validation_items, seed=seed)
        # Compared by prompt: ids count the lines of a file, and two files may both begin with 1.
        asked = {repr(task.prompt) for task in training}
        shared = [task.id for task in validation if repr(task.prompt) in asked]
        if shared:
            raise UsageError(
                f"{len(shared)} tasks are in --tasks and in --validation, such as {min(shared)}",
                hint="a threshold chosen on training tasks is too optimistic; keep the two apart",
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
    answers: Mapping[str, Sequence[Answer]],
    curve: Sequence[Mode],
) -> dict[str, Any]:
    """Choose the thresholds and return the figures of the certificate."""
    points = curve_points(curve, answers)
    target = [answer.correct for answer in answers["target"]]
    best = fastest_with_gain(points, target)
    fast = fastest_without_loss(points, target)
    at = {mode.threshold: answers[mode.name] for mode in curve}
    chosen = {
        **{name: answers[name] for name in ("target", "strict", "draft")},
        "collab": at[best.threshold],
    }
    modes = [Mode(name, name) for name in chosen]  # type: ignore[arg-type]
    figures = summarise_modes(modes, chosen, [task.kind for task in tasks])
    del figures["resample"]
    return {
        "threshold": best.threshold,
        "speed_first": None if fast is None else _point(fast, at[fast.threshold]),
        **figures,
        "override_precision": override_precision(chosen["collab"], target),
        "curve": [
            _point(point, at[point.threshold])
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
