"""cospec-bench quality on the tiny pair: the object it prints, and how it continues after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from arbiters import bundle_with_arbiter, untrained_network
from click.testing import CliRunner, Result

from cospec.calibration.arbiter.network_graph import export_arbiter
from cospec.calibration.quality.cli import main
from cospec.calibration.quality.measurement import measure_quality
from cospec.calibration.quality.mode_runner import ModeJob, ModeRunner, QualityConfig
from cospec.calibration.quality.mode_summary import Answer
from cospec.calibration.quality.modes import parse_modes
from cospec.calibration.tasks.checkers import check
from cospec.calibration.tasks.resolve import resolve_tasks
from cospec.runtime.decoding.session import load
from cospec.runtime.engines.onnxruntime import OrtOptions

ITEMS = 12
MODES = ["target", "strict", "draft", "random:0.2"]
FIGURES = {
    "accuracy",
    "accuracy_ci95",
    "n",
    "tokens_per_target_pass",
    "target_passes_per_item",
    "tokens_per_second",
    "seconds_per_item",
    "tokens_per_item",
    "override_rate",
    "truncated_rate",
    "kinds",
}


@pytest.fixture(scope="module")
def graph(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arbiter") / "model.onnx"
    export_arbiter(untrained_network(tiny_pair_bundle), path)
    return path


def call(bundle: Path, *arguments: object) -> Result:
    words = ["quality", "--engine-dir", bundle, "--tasks", "tiny:validation", "--items", ITEMS]
    return CliRunner().invoke(main, [str(word) for word in (*words, *arguments)])


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {k: v for k, v in figures.items() if "second" not in k and k != "vs_strict"}
        for name, figures in result["modes"].items()
    }


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results") / "answers.jsonl"


@pytest.fixture(scope="module")
def result(tiny_pair_bundle: Path, journal: Path) -> dict[str, Any]:
    done = call(tiny_pair_bundle, "--modes", ",".join(MODES), "--results", journal, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_object(result):
    assert list(result) == ["modes", "oracle", "mcnemar", "resample", "environment"]
    assert list(result["modes"]) == MODES
    for figures in result["modes"].values():
        assert set(figures) - {"vs_target", "vs_strict"} == FIGURES
        assert figures["n"] == ITEMS
        low, high = figures["accuracy_ci95"]
        assert 0 <= low <= figures["accuracy"] <= high <= 1
        assert set(figures["kinds"]) == {"word", "chain", "mul", "list"}
        assert sum(kind["n"] for kind in figures["kinds"].values()) == ITEMS
        assert figures["tokens_per_second"] == pytest.approx(
            figures["tokens_per_item"] / figures["seconds_per_item"]
        )
    assert set(result["oracle"]) == {"accuracy"}
    assert set(result["mcnemar"]) == {"random:0.2_vs_target"}
    assert result["environment"]["tasks"] == "tiny:validation"
    assert result["environment"]["num_draft_tokens"] == 3


def test_strict_answers_as_the_target_does_in_fewer_passes(result):
    modes = result["modes"]
    for key in ("accuracy", "tokens_per_item"):
        assert modes["strict"][key] == modes["target"][key]
    for kind, figures in modes["strict"]["kinds"].items():
        assert figures["accuracy"] == modes["target"]["kinds"][kind]["accuracy"]
    assert modes["strict"]["vs_target"]["gain"] == 0
    ratio = modes["target"]["vs_strict"]["tokens_per_target_pass"]
    assert ratio == 1 / modes["strict"]["tokens_per_target_pass"]
    assert modes["target"]["tokens_per_target_pass"] == 1
    assert modes["draft"]["tokens_per_target_pass"] == 1
    assert modes["strict"]["tokens_per_target_pass"] > 1.5
    assert modes["strict"]["override_rate"] == 0
    assert modes["target"]["override_rate"] is None
    assert 0 < modes["random:0.2"]["override_rate"] < 0.6
    best = max(modes["target"]["accuracy"], modes["draft"]["accuracy"])
    assert best <= result["oracle"]["accuracy"] <= 1


def test_an_answer_ends_at_a_stop_text_of_its_task(tiny_pair_bundle):
    (task,) = resolve_tasks("tiny:validation", items=1)
    modes = tuple(parse_modes(["target", "strict", "sample:0.01,0"]))
    runner = ModeRunner(QualityConfig(tiny_pair_bundle), modes)
    whole = runner.answers(ModeJob(task, modes))
    stopped = runner.answers(ModeJob(replace(task, stop=("=",)), modes))
    for before, after in zip(whole, stopped, strict=True):
        assert before.correct
        assert 0 < after.tokens < before.tokens
        assert not after.correct


def test_the_figures_are_those_of_sessions(tiny_pair_bundle, result):
    """Target and draft alone, run by hand; the draft as if it were the bundle's target."""
    tasks = resolve_tasks("tiny:validation", items=ITEMS)
    session = load(tiny_pair_bundle, options=OrtOptions(threads=1))
    right = tokens = 0
    for task in tasks:
        done = session.generate(task.prompt, max_tokens=task.max_tokens, num_draft_tokens=0)
        right += check(task, done.text)
        tokens += len(done.tokens)
    assert result["modes"]["target"]["accuracy"] == right / ITEMS
    assert result["modes"]["target"]["tokens_per_item"] == tokens / ITEMS
    assert session.caches.draft is not None
    session.caches.target, right = session.caches.draft, 0
    for task in tasks:
        done = session.generate(task.prompt, max_tokens=task.max_tokens, num_draft_tokens=0)
        right += check(task, done.text)
    assert result["modes"]["draft"]["accuracy"] == right / ITEMS


def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the modes that answer an item from now on."""
    names: list[str] = []
    answer = ModeRunner._answer

    def spy(self: ModeRunner, task: Any, mode: Any, limit: Any) -> Answer:
        names.append(mode.name)
        return answer(self, task, mode, limit)

    monkeypatch.setattr(ModeRunner, "_answer", spy)
    return names


def test_a_killed_run_generates_only_what_is_missing(
    tiny_pair_bundle, result, journal, tmp_path, monkeypatch
):
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == ITEMS * len(MODES)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:30]) + lines[30][:25])
    names = answered(monkeypatch)
    arguments = ("--modes", ",".join(MODES), "--results", cut, "--json")
    again = json.loads(call(tiny_pair_bundle, *arguments).stdout)
    assert len(names) == ITEMS * len(MODES) - 30
    assert without_times(again) == without_times(result)
    assert again["environment"]["answers_from_an_earlier_run"] == 30

    names.clear()
    assert json.loads(call(tiny_pair_bundle, *arguments).stdout)["modes"] == again["modes"]
    assert names == [], "all is finished, and times are those of the run that measured them"
    call(tiny_pair_bundle, "--modes", "target,always-draft", "--results", cut)
    assert set(names) == {"always-draft"}, "a new mode does not run the old ones again"


def test_answers_of_other_settings_do_not_count(tiny_pair_bundle, journal, result, monkeypatch):
    names = answered(monkeypatch)
    call(tiny_pair_bundle, "--modes", "strict", "--num-draft-tokens", 2, "--results", journal)
    assert len(names) == ITEMS


def test_a_bundle_with_another_arbiter_keeps_the_other_answers(
    tiny_pair_bundle, graph, tmp_path, monkeypatch
):
    other = tmp_path / "other.onnx"
    export_arbiter(untrained_network(tiny_pair_bundle, seed=1), other)
    first = bundle_with_arbiter(tiny_pair_bundle, graph, tmp_path / "first")
    second = bundle_with_arbiter(tiny_pair_bundle, other, tmp_path / "second")
    arguments = ("--modes", "strict,draft,collab", "--results", tmp_path / "answers.jsonl")
    call(first, *arguments)
    names = answered(monkeypatch)
    call(second, *arguments)
    assert names == ["collab"] * ITEMS
    names.clear()
    call(tiny_pair_bundle, *arguments, "--arbiter", graph)
    assert names == [], "the same arbiter, wherever it lies"


def test_collab_with_graphs_of_ones_own_and_random_at_its_rate(tiny_pair_bundle, graph):
    modes = parse_modes(
        ["target", "strict", "random", "collab@1", "collab@0", "always-draft"], graphs=[graph]
    )
    modes = [modes[0], modes[1], modes[2], modes[4], modes[3], modes[5]]
    tasks = resolve_tasks("tiny:validation", items=ITEMS)
    found = measure_quality(QualityConfig(tiny_pair_bundle), tasks, modes)
    figures = without_times(found)
    assert figures["collab@1"] == figures["strict"]
    assert figures["collab@0"] == figures["always-draft"] == figures["random"]
    assert set(found["mcnemar"]) == {
        "random_vs_target",
        "collab@0_vs_target",
        "collab@1_vs_target",
        "always-draft_vs_target",
        "collab@0_vs_random",
        "collab@0_vs_always-draft",
        "collab@1_vs_random",
        "collab@1_vs_always-draft",
    }
    assert found["mcnemar"]["collab@1_vs_target"] == 1
    assert found["environment"]["arbiters"] == {"collab@0": "model.onnx", "collab@1": "model.onnx"}


def test_the_bundles_own_arbiter_and_the_table(tiny_pair_bundle, graph, tmp_path):
    own = bundle_with_arbiter(tiny_pair_bundle, graph, tmp_path / "own", threshold=1.0)
    done = call(own, "--modes", "target,draft,collab", "--items", 4)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["mode", "target", "draft", "collab"]
    assert "right, tok/pass" in done.stdout, "the kinds of items have a table"
    assert lines[1].split()[1] == lines[3].split()[1]
    assert "4 items; either model alone is right on" in done.stdout
    columns = dict(zip(lines[0].split()[1:8], lines[3].split()[1:8], strict=True))
    assert columns["overrides"] == "0.00%"
    assert columns["truncated"] == "0.00%"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "collab"], "this bundle has no arbiter"),
        (["--modes", "collab", "--arbiter", "absent.onnx"], "absent.onnx: no such arbiter graph"),
        (["--modes", "oracle"], "unknown rule 'oracle'"),
        (["--thresholds", "0.5,x"], "--thresholds: 'x' is not a number from 0 to 1"),
        (["--processes", "0"], "--processes is 0"),
        (["--num-draft-tokens", "0"], "--num-draft-tokens is 0"),
        (["--tasks", "tiny:exam"], "names no tasks"),
    ],
)
def test_bad_input(tiny_pair_bundle, arguments, message):
    done = call(tiny_pair_bundle, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_a_plot_without_matplotlib_is_refused_before_anything_runs(tiny_pair_bundle, tmp_path):
    done = call(tiny_pair_bundle, "--plot", tmp_path / "plot.png")
    assert done.exit_code == 4
    assert "cospec[bench]" in done.stderr


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib (extra bench)")
def test_the_plot(result, tmp_path):
    from cospec.calibration.quality.quality_report import plot_quality

    curve = {f"collab@{i}": figures for i, figures in enumerate(result["modes"].values())}
    plot_quality(result | {"modes": result["modes"] | curve}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_truncated_answers_are_counted(tiny_pair_bundle, result):
    assert result["modes"]["target"]["truncated_rate"] == 0
    done = call(tiny_pair_bundle, "--max-tokens", 5, "--items", 4, "--json")
    for figures in json.loads(done.stdout)["modes"].values():
        assert figures["truncated_rate"] == 1
        assert figures["tokens_per_item"] == 5


def test_the_resample_control_samples_the_target_twice(tiny_pair_bundle):
    arguments = ("--resample-control", "--modes", "target,draft", "--json")
    done = call(tiny_pair_bundle, *arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["resample"]["modes"] == ["sample:0.7,1", "sample:0.7,2"]
    first, second = (found["modes"][name] for name in found["resample"]["modes"])
    assert first["tokens_per_target_pass"] == second["tokens_per_target_pass"] == 1
    assert first["tokens_per_item"] != second["tokens_per_item"], "two seeds, two sets of answers"
    again = json.loads(call(tiny_pair_bundle, *arguments).stdout)
    assert without_times(again) == without_times(found), "a seed always draws the same answers"
    text = call(tiny_pair_bundle, "--resample-control", "1.5", "--items", 2).stdout
    assert "sample:1.5,1" in text
    assert "resample control: only a sample is right, and not the target:" in text
