"""cospec-calibrate arbiter from end to end, at the smallest scale that goes through every stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cospec.calibration.arbiter.network import ArbiterConfig, ArbiterNetwork
from cospec.calibration.arbiter.policy import weights_of
from cospec.calibration.arbiter.rollout_jobs import (
    NEVER,
    BranchJob,
    GroupJob,
    count_cells,
    run_branches,
    run_group,
)
from cospec.calibration.arbiter.threshold import GRID
from cospec.calibration.cli import main
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.models import tiny_pair
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load


@pytest.fixture(scope="module")
def bundle(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_pair_bundle, tmp_path_factory.mktemp("calibrate") / "tiny"))


@pytest.fixture(scope="module")
def calibrated(bundle: Path) -> dict[str, Any]:
    arguments = ["--engine-dir", bundle, "--tasks", "tiny:train", "--items", "10"]
    arguments += ["--validation", "tiny:validation", "--validation-items", "4", "--json"]
    for setting in ("steps=1", "prompts=2", "group=2", "warm_epochs=5"):
        arguments += ["--set", setting]
    done = CliRunner().invoke(main, ["arbiter", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_bundle_holds_the_arbiter_and_its_certificate(bundle, calibrated):
    opened = Bundle.open(bundle)  # every hash matches
    entry = opened.manifest.models.arbiter
    assert entry is not None
    assert entry.threshold == calibrated["threshold"]
    certificate = json.loads(opened.path("certificate.json").read_text())
    assert certificate["quality"]["modes"] == calibrated["modes"]
    assert "parity" in certificate, "the exporter's part is kept"
    hashes = {e.path: e.sha256 for e in opened.manifest.files}
    for path, sha256 in certificate["quality"]["measured_on"].items():
        assert hashes[path] == sha256


def test_the_figures_have_the_promised_shape(calibrated):
    assert set(calibrated["modes"]) == {"target", "strict", "draft", "collab"}
    assert calibrated["modes"]["strict"]["accuracy"] == calibrated["modes"]["target"]["accuracy"]
    tried = [point["threshold"] for point in calibrated["curve"]]
    assert set(GRID) <= set(tried)
    assert tried == sorted(tried)
    assert 0 <= calibrated["mcnemar"]["collab_vs_target"] <= 1


def test_the_arbiter_s_folder_certifies_an_equal_bundle_only(bundle, calibrated, tmp_path):
    from cospec.calibration.arbiter.install import install_arbiter
    from cospec.runtime.bundle.certificate import is_certified

    folder = bundle.with_name("tiny.calibration") / "arbiter"
    assert (folder.parent / "training.png").read_bytes().startswith(b"\x89PNG")
    again = Path(shutil.copytree(bundle, tmp_path / "again"))
    install_arbiter(again, folder)
    assert is_certified(again, Bundle.open(again).manifest)
    certificate = json.loads((folder / "certificate.json").read_text())
    certificate["measured_on"]["target/model.onnx"] = "0" * 64
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "certificate.json").write_text(json.dumps(certificate))
    install_arbiter(again, other)
    assert not is_certified(again, Bundle.open(again).manifest)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("speed=1", "no hyper-parameter 'speed'"),
        ("steps=many", "'many' is not a whole number"),
        ("group=1", "group is 1, but must be at least 2"),
    ],
)
def test_a_bad_hyper_parameter_is_named(bundle, setting, message):
    arguments = ["arbiter", "--engine-dir", str(bundle), "--tasks", "tiny:train", "--set", setting]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_the_new_bundle_runs_in_collab_mode(bundle, calibrated):
    session = load(bundle)
    prompt = "Q: What is 851*3?\nA:"
    strict = session.generate(prompt, max_tokens=48)
    assert (
        session.generate(prompt, max_tokens=48, mode="collab", threshold=1).tokens == strict.tokens
    )
    loose = session.generate(prompt, max_tokens=48, mode="collab", threshold=0)
    assert loose.provenance.count("draft") == loose.stats.num_overrides > 0


def test_a_branch_is_continued_both_ways(bundle, tmp_path):
    from cospec.calibration.arbiter.network_graph import export_features
    from cospec.calibration.arbiter.rollouts import RolloutSetup

    export_features(ArbiterConfig(), tmp_path / "graph.onnx")
    runner = RolloutSetup(bundle, tmp_path / "graph.onnx", ArbiterConfig(), max_tokens=96)()
    weights = weights_of(ArbiterNetwork(ArbiterConfig()))
    tasks = tiny_tasks("train", 6, seed=5)
    records = [run_branches(runner, BranchJob(task, 2, weights, NEVER, 0)) for task in tasks]
    assert sum(count_cells(records).values()) == sum(len(r["branches"]) for r in records) > 0
    for task, record in zip(tasks, records, strict=True):
        # Never keeping is the target's own greedy answer: the other side of each branch.
        prompt = runner.session.encode(task.prompt)
        strict = runner.session.continue_tokens(prompt, max_tokens=96).completion()
        runner.begin_job(task, weights)
        assert runner.rollout(NEVER).tokens == strict.tokens
        assert all(b["target"] == record["correct"] for b in record["branches"])
        assert all(b["tokens"][1] in strict.tokens for b in record["branches"])
        assert all(b["tokens"][0] != b["tokens"][1] for b in record["branches"])
        runner.begin_job(replace(task, stop=(runner.text(strict.tokens)[3:6],)), weights)
        assert 0 < len(runner.rollout(NEVER).tokens) < len(strict.tokens)


def test_a_tasks_limit_holds_unless_the_training_has_its_own(bundle, tmp_path):
    from cospec.calibration.arbiter.network_graph import export_features
    from cospec.calibration.arbiter.rollouts import RolloutSetup

    export_features(ArbiterConfig(), tmp_path / "graph.onnx")
    weights = weights_of(ArbiterNetwork(ArbiterConfig()))
    (task,) = tiny_tasks("train", 1, seed=5)
    for own, limit, length in ((None, 5, 5), (3, 5, 3)):
        runner = RolloutSetup(bundle, tmp_path / "graph.onnx", ArbiterConfig(), max_tokens=own)()
        runner.begin_job(replace(task, max_tokens=limit), weights)
        assert len(runner.rollout(NEVER).tokens) == length


def test_the_rollouts_of_a_job_read_its_prompt_once_and_no_other_job_s(bundle, tmp_path):
    from cospec.calibration.arbiter.network_graph import export_features
    from cospec.calibration.arbiter.rollouts import RolloutSetup

    export_features(ArbiterConfig(), tmp_path / "graph.onnx")
    runner = RolloutSetup(bundle, tmp_path / "graph.onnx", ArbiterConfig(), max_tokens=24)()
    cached: list[int] = []
    run = runner.session.run

    def noting(plan: Any) -> Any:
        stream = run(plan)
        stream.completion()
        cached.append(stream.stats.num_cached_tokens)
        return stream

    runner.session.run = noting
    weights = weights_of(ArbiterNetwork(ArbiterConfig()))
    one, other = tiny_tasks("train", 2, seed=5)
    prompt = runner.session.encode(one.prompt)
    job = GroupJob(one, 3, weights, 0.4, "0")
    first = run_group(runner, job)
    assert cached[0] == 0
    assert all(count >= len(prompt) - 1 for count in cached[1:])
    run_group(runner, GroupJob(other, 2, weights, 0.4, "0"))
    cached.clear()
    assert run_group(runner, job) == first, "whatever the worker did before"
    assert cached[0] == 0


def test_tasks_in_both_sets_are_refused(bundle, tmp_path):
    arguments = [
        "--engine-dir",
        bundle,
        "--tasks",
        "tiny:train",
        "--items",
        "5",
        "--work",
        tmp_path,
    ]
    arguments += ["--validation", "tiny:train", "--validation-items", "5"]
    done = CliRunner().invoke(main, ["arbiter", *map(str, arguments)])
    assert done.exit_code == 2
    assert "in --tasks and in --validation" in done.stderr


def test_the_packaged_arbiter_goes_with_the_packaged_pair_only(tmp_path):
    from cospec.models.presets import resolve_arbiter

    assert resolve_arbiter("tiny", None, None) == tiny_pair.ARBITER
    assert resolve_arbiter("tiny", "tiny-draft", None) is None
    assert resolve_arbiter("tiny", None, "none") is None
    assert resolve_arbiter("llama-8b", None, None) is None
    assert resolve_arbiter("llama-8b", None, str(tmp_path)) == tmp_path
    graph = (tiny_pair.ARBITER / "model.onnx").read_bytes()
    assert b".py" not in graph, "a stack trace of the machine that exported it"


def test_a_certificate_of_other_files_is_refused(bundle, calibrated):
    from msgspec.structs import replace

    from cospec.errors import BundleError
    from cospec.runtime.bundle.certificate import is_certified

    manifest = Bundle.open(bundle).manifest
    assert is_certified(bundle, manifest)
    swapped = [
        replace(e, sha256="0" * 64) if e.path == "draft/model.onnx.data" else e
        for e in manifest.files
    ]
    with pytest.raises(BundleError, match=r"measured on another draft/model.onnx.data"):
        is_certified(bundle, replace(manifest, files=tuple(swapped)))


def test_an_arbiter_is_certified_again_on_another_bundle(tiny_pair_bundle, tmp_path):
    """As after a new export: its old certificate counts for other files."""
    bundle = shutil.copytree(tiny_pair_bundle, tmp_path / "pair")
    folder = shutil.copytree(tiny_pair.ARBITER, tmp_path / "arbiter")
    earlier = json.loads((folder / "certificate.json").read_text())
    arguments = ["--engine-dir", bundle, "--arbiter", folder, "--tasks", "tiny:validation"]
    result = CliRunner().invoke(
        main, ["certify", *map(str, arguments), "--items", "6", "--max-tokens", "48", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["data"] == {**earlier["data"], "validation": "tiny:validation", "items": 6}
    assert found["training"] == earlier["training"]
    assert found["modes"]["target"]["n"] == 6
    opened = Bundle.open(bundle)
    assert opened.manifest.models.arbiter.threshold == found["threshold"]
    assert json.loads((bundle / "certificate.json").read_text())["quality"] == found
    assert sorted(file.name for file in folder.iterdir()) == [
        "arbiter.json",
        "certificate.json",
        "model.onnx",
    ]
