"""Measure the arbiter on the tiny pair: seeds, feature sets, supervision alone, transfer, baselines.

Trains every network from the bundle's own engines, chooses each one's thresholds on validation
problems, and runs all of them with the plain modes and the baselines on the same held-out problems,
taking turns. This takes hours on a small machine; a run that was stopped continues.

    .venv/bin/python -m bench.arbiter_study --engine-dir models/tiny --work .cache/study --processes 2

Writes `study.json`, `study.txt` and `curve.png` into the work folder. The network of the first seed is
the packaged one, whatever its rank.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import click

from cospec.calibration.arbiter.config import TrainingConfig
from cospec.calibration.arbiter.network import save_network
from cospec.calibration.arbiter.network_graph import export_arbiter
from cospec.calibration.arbiter.threshold import (
    curve_modes,
    curve_points,
    fastest_with_gain,
    fastest_without_loss,
    measure_curves,
)
from cospec.calibration.arbiter.training import train_arbiter
from cospec.calibration.quality.measurement import measure_quality
from cospec.calibration.quality.mode_runner import QualityConfig
from cospec.calibration.quality.mode_summary import Answer, summarise_modes
from cospec.calibration.quality.modes import BASELINE_THRESHOLD, PLAIN, Mode
from cospec.calibration.quality.quality_report import as_text, plot_quality, require_matplotlib
from cospec.calibration.quality.workers import Scale
from cospec.calibration.tasks.item import Task
from cospec.calibration.tasks.tiny import MAX_TOKENS, tiny_tasks
from cospec.models.tiny_pair.tasks import KINDS
from cospec.runtime.bundle.reader import find_bundle

SPLITS = (("word", "mul"), ("chain", "list"))
"""Training kinds of the transfer networks; each is tested on the other's. Both hold one kind that the
draft is better at (mul, list) and one that the target is better at."""

PLOTTED = (0.05, 0.1, 0.2, 0.5, 0.9)
"""Thresholds of the plotted curve on the test problems."""

PROBLEMS = {"mul": 700}
"""Number of different test problems of a kind that has few."""

BASELINES = ("always-draft", "typical:0.3,0.09", "relaxed:3,0.2", "fly:2,0.3", "ensemble:0.5")


@dataclass(frozen=True)
class Variant:
    """One network of the study.

    Attributes:
        name: in tables, and of its folder.
        config: its training.
        kinds: kinds of problems that it is trained on; None for all.
    """

    name: str
    config: TrainingConfig
    kinds: tuple[str, ...] | None = None


def variants(seeds: Sequence[int], hidden: int, steps: int) -> list[Variant]:
    """Return all networks: one per seed, two for half of the kinds, `hidden` with hidden states."""
    config = TrainingConfig(steps=steps, max_tokens=MAX_TOKENS)
    seeded = [dataclasses.replace(config, seed=seed) for seed in seeds]
    made = [Variant(f"seed {config.seed}", config) for config in seeded]
    made += [Variant(f"only {'+'.join(kinds)}", seeded[0], kinds) for kinds in SPLITS]
    for config in seeded[:hidden]:
        with_hidden = dataclasses.replace(config, features="hidden")
        made.append(Variant(f"hidden {config.seed}", with_hidden))
    return made


def train(variant: Variant, bundle: Path, items: int, work: Path, scale: Scale) -> dict[str, Path]:
    """Train one network; return the graphs that are compared: with seeds, the warm start too."""
    tasks = tiny_tasks("train", items, variant.config.seed)
    if variant.kinds is not None:
        tasks = [task for task in tasks if task.kind in variant.kinds]
    folder = work / variant.name
    shared = work / "branches.jsonl"  # the transfer networks need those of the first seed
    trained = train_arbiter(bundle, tasks, variant.config, folder, scale, click.echo, shared)
    graphs = {variant.name: folder / "model.onnx"}
    export_arbiter(trained.network, graphs[variant.name])
    save_network(trained.network, folder / "network.safetensors")
    if variant.name.startswith("seed"):
        graphs[f"{variant.name}, warm start"] = folder / "warm.onnx"
        export_arbiter(trained.warm, folder / "warm.onnx")
    return graphs


def chosen_modes(
    name: str, curve: Sequence[Mode], answers: Mapping[str, Sequence[Answer]]
) -> list[Mode]:
    """Return an arbiter's modes for the test problems: its threshold, and the one that is speed first.

    Args:
        name: of the arbiter.
        curve: its modes on the validation problems.
        answers: to these modes, and of the target.
    """
    points = curve_points(curve, answers)
    target = [answer.correct for answer in answers["target"]]
    best, fast = fastest_with_gain(points, target), fastest_without_loss(points, target)
    modes = [Mode(name, "collab", best.threshold, curve[0].graph)]
    if fast is not None:
        modes.append(Mode(f"{name}, speed first", "collab", fast.threshold, curve[0].graph))
    return modes


def unseen_tasks(count: int, skip: int) -> list[Task]:
    """Return test problems after the first `skip`, the kinds taking turns as long as they last."""
    if skip == 0:
        return tiny_tasks("test", count, seed=0)
    seen = {task.id for task in tiny_tasks("test", skip, seed=0)}
    pools = []
    for kind in KINDS:
        pool = tiny_tasks("test", PROBLEMS.get(kind, skip + count), 0, [kind])
        pools.append([task for task in pool if task.id not in seen])
    turns = (task for turn in zip_longest(*pools) for task in turn if task is not None)
    return list(islice(turns, count))


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path), default=Path("models/tiny"))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of the study.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Arbiter seeds.")
@click.option("--hidden", default=1, show_default=True, help="Seeds with hidden states too.")
@click.option("--items", default=2500, show_default=True, help="Training problems of each seed.")
@click.option("--steps", default=TrainingConfig.steps, show_default=True, help="Updates.")
@click.option("--validation-items", default=300, show_default=True)
@click.option("--test-items", default=2000, show_default=True)
@click.option(
    "--test-skip",
    default=0,
    show_default=True,
    help="Test problems to leave out first: those that an earlier run has used.",
)
@click.option("--processes", default=1, show_default=True, help="Worker processes.")
def main(
    engine_dir: Path,
    work: Path,
    seeds: str,
    hidden: int,
    items: int,
    steps: int,
    validation_items: int,
    test_items: int,
    test_skip: int,
    processes: int,
) -> None:
    """Train all networks, choose their thresholds, and compare them."""
    require_matplotlib()  # now, and not after hours of work
    bundle, scale = find_bundle(engine_dir), Scale(processes=processes)
    graphs: dict[str, Path] = {}
    for variant in variants([int(seed) for seed in seeds.split(",")], hidden, steps):
        click.echo(f"-- {variant.name}")
        graphs |= train(variant, bundle, items, work, scale)
    config = QualityConfig(bundle, max_tokens=MAX_TOKENS, processes=processes)
    known = tiny_tasks("validation", validation_items, seed=0)
    curves, answers = measure_curves(config, known, graphs, work / "validation.jsonl")
    modes, names = list(PLAIN), [f"seed {seed}" for seed in seeds.split(",")]
    for name in names:
        modes += chosen_modes(name, curves[name], answers)
    modes += curve_modes("collab", graphs[names[0]], PLOTTED)
    modes += [Mode(rule, "baseline", BASELINE_THRESHOLD, rule=rule) for rule in BASELINES]
    modes.append(Mode("random", "baseline"))
    held_out = unseen_tasks(test_items, test_skip)
    test = measure_quality(config, held_out, modes, work / f"test {test_skip}.jsonl")
    every = [*PLAIN, *(mode for curve in curves.values() for mode in curve)]
    validation = summarise_modes(every, answers, [task.kind for task in known])
    text = f"Test problems\n\n{as_text(test)}\n\nValidation problems\n\n{as_text(validation)}\n"
    result = {"test": test, "validation": validation}
    (work / "study.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (work / "study.txt").write_text(text, encoding="utf-8")
    shown = {name: row for name, row in test["modes"].items() if not name.startswith("seed")}
    plot_quality(test | {"modes": shown}, work / "curve.png")
    click.echo(text)


if __name__ == "__main__":
    main()
