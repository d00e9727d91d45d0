"""What the arbiter is worth on the tiny pair: seeds, feature sets, supervision, transfer, baselines.

Trains every network anew from the bundle's own engines, chooses each one's thresholds on validation
problems, and runs all of them with the plain modes and the baselines on the same held-out problems,
taking turns. Hours of work on a small machine; a run that was stopped goes on where it was.

    .venv/bin/python -m bench.arbiter_study --engine-dir models/tiny --work .cache/study --processes 2

Writes `study.json`, `study.md` and `curve.png` into the work folder. The network of the first seed is
the packaged one, whatever its rank.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import click

from cospec.calibration.arbiter.config import TrainingConfig
from cospec.calibration.arbiter.curve import curve_modes, curve_points, play_finer
from cospec.calibration.arbiter.install import measured_files
from cospec.calibration.arbiter.network import A_FEATURES, export_arbiter, save_network
from cospec.calibration.arbiter.threshold import fastest_with_gain, fastest_without_loss
from cospec.calibration.arbiter.training import (
    arbiter_shape,
    play_branches,
    player_setup,
    train_from_branches,
)
from cospec.calibration.quality.accuracy_plot import plot_quality, require_matplotlib
from cospec.calibration.quality.measurement import play_modes
from cospec.calibration.quality.mode_summary import Answer, override_rate
from cospec.calibration.quality.modes import BASELINE_THRESHOLD, PLAIN, Mode
from cospec.calibration.quality.worker import QualityConfig
from cospec.calibration.quality.worker_pool import Journal, Workers
from cospec.calibration.tasks.item import Task
from cospec.calibration.tasks.tiny import MAX_TOKENS, tiny_tasks
from cospec.models.tiny_pair.tasks import KINDS
from cospec.runtime.bundle.reader import Bundle, find_bundle

from .arbiter_tables import as_markdown, compare

SPLITS = (("word", "mul"), ("chain", "list"))
"""Training kinds of the transfer networks; each is tested on the other's. Both hold one kind that the
draft is better at (mul, list) and one that the target is better at."""

PLOTTED = (0.05, 0.1, 0.2, 0.5, 0.9)
"""Thresholds of the plotted curve on the test problems."""

PROBLEMS = {"mul": 700}
"""Different test problems of a kind that has few."""

BASELINES = ("always-draft", "typical:0.3,0.09", "relaxed:3,0.2", "fly:2,0.3", "ensemble:0.5")


@dataclass(frozen=True)
class Variant:
    """One network of the study.

    Attributes:
        name: in tables, and of its folder.
        config: how it is trained.
        kinds: kinds of problems that it is trained on; None for all.
    """

    name: str
    config: TrainingConfig
    kinds: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Arbiter:
    """A trained network with its thresholds.

    Attributes:
        graph: its ONNX graph.
        threshold: the fastest that keeps most of the gain on validation.
        speed_first: the fastest that does not lose to the target there, or None.
    """

    graph: Path
    threshold: float
    speed_first: float | None


def variants(seeds: Sequence[int], hidden: int, steps: int) -> list[Variant]:
    """Return all networks: one a seed, two that saw half of the kinds, `hidden` with hidden states."""
    config = TrainingConfig(steps=steps, max_tokens=MAX_TOKENS)
    seeded = [dataclasses.replace(config, seed=seed) for seed in seeds]
    made = [Variant(f"seed {config.seed}", config) for config in seeded]
    for kinds in SPLITS:
        made.append(Variant(f"only {'+'.join(kinds)}", seeded[0], kinds))
    for config in seeded[:hidden]:
        with_hidden = dataclasses.replace(config, features="hidden")
        made.append(Variant(f"hidden {config.seed}", with_hidden))
    return made


def train(variant: Variant, bundle: Bundle, items: int, work: Path, processes: int) -> None:
    """Train one network; leave `model.onnx`, `warm.onnx` and the weights in its folder."""
    tasks = tiny_tasks("train", items, variant.config.seed)
    records = _branches(variant, bundle, tasks, work, processes)
    if variant.kinds is not None:
        both = [(t, r) for t, r in zip(tasks, records, strict=True) if t.kind in variant.kinds]
        tasks, records = [task for task, _ in both], [record for _, record in both]
    shape = arbiter_shape(bundle.manifest, variant.config)
    folder = work / variant.name
    setup = player_setup(bundle.root, shape, variant.config, folder)
    with Workers(processes, setup) as workers:
        trained = train_from_branches(
            workers, tasks, records, shape, variant.config, folder, click.echo
        )
    for name, network in (("warm", trained.warm), ("model", trained.network)):
        export_arbiter(network, folder / f"{name}.onnx")
        save_network(network, folder / f"{name}.safetensors")


def _branches(
    variant: Variant, bundle: Bundle, tasks: list[Task], work: Path, processes: int
) -> list[dict[str, Any]]:
    """Play a seed's branches once for both feature sets: `hidden` begins with the columns of `a`."""
    config = dataclasses.replace(variant.config, features="hidden")
    shape = arbiter_shape(bundle.manifest, config)
    folder = work / f"branches {config.seed}"
    journal = Journal(folder / "branches.jsonl")
    with Workers(processes, player_setup(bundle.root, shape, config, folder)) as workers:
        records = play_branches(workers, tasks, shape, config, journal, measured_files(bundle))
    if variant.config.features == "a":
        for record in records:
            for branch in record["branches"]:
                branch["features"] = branch["features"][: len(A_FEATURES)]
    return records


def play_validation(
    graphs: dict[str, Path], config: QualityConfig, tasks: list[Task], results: Path
) -> tuple[dict[str, list[Mode]], dict[str, list[Answer]]]:
    """Play the plain modes and the whole curve of every graph; return the curves and all answers."""
    curves = {name: curve_modes(name, graph) for name, graph in graphs.items()}
    first = [mode for curve in curves.values() for mode in curve]
    answers = play_modes(config, tasks, [*PLAIN, *first], results)
    for curve in curves.values():
        play_finer(config, tasks, curve, answers, results)
    return curves, answers


def choose(curve: list[Mode], answers: dict[str, list[Answer]]) -> Arbiter:
    """Choose the thresholds of the graph whose curve was played on the validation problems."""
    points = curve_points(curve, answers)
    target = [answer.correct for answer in answers["target"]]
    fast = fastest_without_loss(points, target)
    best = fastest_with_gain(points, target)
    assert curve[0].graph is not None
    return Arbiter(curve[0].graph, best.threshold, None if fast is None else fast.threshold)


def test_modes(arbiters: dict[str, Arbiter], curve_of: str) -> list[Mode]:
    """Return everything that is played on the test problems, but for the random rule."""
    modes = list(PLAIN)
    for name, arbiter in arbiters.items():
        modes.append(Mode(name, "collab", arbiter.threshold, arbiter.graph))
        if arbiter.speed_first is not None:
            fast = Mode(f"{name}, speed first", "collab", arbiter.speed_first, arbiter.graph)
            modes.append(fast)
    graph = arbiters[curve_of].graph
    modes += curve_modes("collab", graph, PLOTTED)
    return modes + [Mode(rule, "baseline", BASELINE_THRESHOLD, rule=rule) for rule in BASELINES]


def play_test(
    config: QualityConfig,
    tasks: list[Task],
    arbiters: dict[str, Arbiter],
    first: str,
    results: Path,
) -> tuple[list[Mode], dict[str, list[Answer]]]:
    """Play all modes, and then the random rule at the rate at which the `first` arbiter overrides."""
    modes = test_modes(arbiters, first)
    answers = play_modes(config, tasks, modes, results)
    rate = override_rate(answers[first]) or 0.0
    blind = Mode("random", "baseline", BASELINE_THRESHOLD, rule=f"random:{rate:.6f}")
    answers |= play_modes(config, tasks, [blind], results)
    return [*modes, blind], answers


def unseen_tasks(count: int, skip: int) -> list[Task]:
    """Return test problems behind the first `skip`, the kinds taking turns as long as they last."""
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
    help="Test problems to leave out first: those that an earlier run has shown.",
)
@click.option("--processes", default=1, show_default=True, help="One thread each.")
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
    """Train, choose, play, compare."""
    require_matplotlib()  # now, and not after hours of playing
    bundle = Bundle.open(find_bundle(engine_dir))
    networks = variants([int(seed) for seed in seeds.split(",")], hidden, steps)
    first = networks[0].name
    graphs: dict[str, Path] = {}
    for variant in networks:
        click.echo(f"-- {variant.name}")
        train(variant, bundle, items, work, processes)
        graphs[variant.name] = work / variant.name / "model.onnx"
        if variant.name.startswith("seed"):
            graphs[f"{variant.name}, warm start"] = work / variant.name / "warm.onnx"
    config = QualityConfig(bundle.root, max_tokens=MAX_TOKENS, processes=processes)
    known = tiny_tasks("validation", validation_items, seed=0)
    curves, played = play_validation(graphs, config, known, work / "validation.jsonl")
    names = [f"seed {seed}" for seed in seeds.split(",")]
    arbiters = {name: choose(curves[name], played) for name in names}
    held_out = unseen_tasks(test_items, test_skip)
    modes, answers = play_test(config, held_out, arbiters, first, work / f"test {test_skip}.jsonl")
    result = {
        "test": compare(modes, answers, [task.kind for task in held_out]),
        "validation": compare(
            [*PLAIN, *(mode for curve in curves.values() for mode in curve)],
            played,
            [task.kind for task in known],
        ),
        "arbiters": {
            name: {"threshold": arbiter.threshold, "speed_first": arbiter.speed_first}
            for name, arbiter in arbiters.items()
        },
    }
    (work / "study.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (work / "study.md").write_text(as_markdown(result), encoding="utf-8")
    shown = {
        name: figures
        for name, figures in result["test"]["modes"].items()
        if not name.startswith("seed")
    }
    plot_quality({"modes": shown, "oracle": result["test"]["oracle"]}, work / "curve.png")
    click.echo(as_markdown(result))


if __name__ == "__main__":
    main()
