"""`cospec-calibrate draft-vocabulary`: what it writes, measures and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from trimmed_drafts import OUTPUTS, TOKENS, engine, some_ids

from cospec.calibration.cli import main
from cospec.calibration.draft_vocabulary import most_frequent, trim, trim_bundle
from cospec.calibration.draft_vocabulary import trimming as trial
from cospec.calibration.draft_vocabulary.frequency import count
from cospec.calibration.draft_vocabulary.trimmed_head import LOWEST
from cospec.calibration.weights import format_speed as speed
from cospec.errors import ResourceError, UsageError
from cospec.runtime.bundle.manifest import MANIFEST_NAME, EnginesEntry, to_json
from cospec.runtime.bundle.reader import read_manifest


def call(bundle: Path, output: Path, *arguments: object) -> Any:
    options = ["--engine-dir", bundle, "--output", output, *arguments]
    return CliRunner().invoke(main, ["draft-vocabulary", *map(str, options)])


@pytest.fixture
def brief(monkeypatch):
    """Timings of a few tokens: no test depends on their size."""
    monkeypatch.setattr(speed, "TOKENS", 6)
    monkeypatch.setattr(trial, "ROUNDS", 2)


@pytest.mark.usefixtures("brief")
def test_the_command_on_tasks(tiny_pair_bundle, tmp_path):
    output = tmp_path / "new"
    arguments = ("--size", 100, "--tasks", "tiny:train", "--items", 12, "--prompts", 2)
    done = call(tiny_pair_bundle, output, *arguments, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["kept_tokens"], facts["vocab_size"]) == (100, 512)
    assert 0.9 < facts["coverage"]["held_out"] <= 1
    assert facts["coverage"]["counted"] == 1, "so few answers hold fewer tokens"
    for name in ("before", "after"):
        assert 0 < facts[name]["acceptance"] <= 1
        assert facts[name]["tokens_per_second"] > 0
        assert facts[name]["draft_step_seconds"] > 0
    # A tied embedding is kept, so the head adds to the file.
    added = facts["after"]["draft_bytes"] - facts["before"]["draft_bytes"]
    assert 100 * 96 * 4 <= added < 100 * 96 * 4 + 8192
    assert [facts[name]["head_weights"] for name in ("before", "after")] == [512 * 96, 100 * 96]
    assert facts["data"]["prompts"] == 2
    assert json.loads((output / "certificate.json").read_text())["draft_vocabulary"] == {
        "source": read_manifest(tiny_pair_bundle).seal,
        **facts,
    }
    assert "round 1 of 2" in done.stderr


@pytest.mark.usefixtures("brief")
def test_the_command_on_a_text(tiny_pair_bundle, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Q: What is 12 + 30?\nA: 12 + 30 = 42. The answer is 42.\n" * 60)
    arguments = ("--size", 64, "--texts", text, "--prompts", 2)
    done = call(tiny_pair_bundle, tmp_path / "new", *arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("64 of 512 tokens kept: 100.00% of the ")
    assert [line.split("  ")[0].strip() for line in lines[2:]] == [
        "draft's files", "head's weights", "draft step", "accepted", "tokens/s",
    ]  # fmt: skip
    again = call(tiny_pair_bundle, tmp_path / "new", *arguments)
    assert again.exit_code == ResourceError.exit_code
    assert "a bundle is there already" in again.stderr


@pytest.mark.usefixtures("brief")
def test_the_command_without_data_keeps_the_lowest_ids(tiny_pair_bundle, tmp_path):
    done = call(tiny_pair_bundle, tmp_path / "new", "--size", 100, "--prompts", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("100 of 512 tokens kept: the lowest ids, ")
    manifest = read_manifest(tmp_path / "new")
    kept = most_frequent(count([], 512), 100, manifest)
    entry = manifest.models.draft
    step = engine(tmp_path / "new", tmp_path / "new" / entry.graph, entry).decoder(OUTPUTS).step
    logits = step(TOKENS).logits
    assert (logits[:, kept] > LOWEST).all()
    assert (np.delete(logits, kept, axis=1) == LOWEST).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", 0, "--tasks", "tiny:train"), "--size is 0, but must be at least 1"),
        (("--size", 7, "--tasks", "tiny:train"), "7 tokens cannot be kept of a vocabulary of 512"),
        (("--size", 512, "--tasks", "tiny:train"), "give a --size from 8 to 511"),
        (("--size", 64, "--texts", "absent.txt"), "cannot be read"),
        (("--size", 64, "--tasks", "tiny:train", "--items", 1), "too short to hold some out"),
    ],
)
def test_what_is_refused(tiny_pair_bundle, tmp_path, arguments, message):
    done = call(tiny_pair_bundle, tmp_path / "new", *arguments)
    assert done.exit_code == UsageError.exit_code, done.output
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_bundles_that_cannot_be_trimmed(tiny_pair_bundle, trimmed_pair, tmp_path):
    kept = some_ids(tiny_pair_bundle)
    manifest = read_manifest(tiny_pair_bundle)

    def remade(**fields: Any) -> Path:
        folder = shutil.copytree(tiny_pair_bundle, tmp_path / next(iter(fields)))
        (folder / MANIFEST_NAME).write_bytes(to_json(replace(manifest, **fields)))
        return folder

    cases = {
        "was trimmed already": trimmed_pair,
        "has no draft": remade(models=replace(manifest.models, draft=None)),
        "exported for TensorRT": remade(
            engines=EnginesEntry(device="rtx-4090", flavour="rtx", trt_version="1.7")
        ),
        "is in fp16": remade(precision="fp16"),
    }
    for message, bundle in cases.items():
        with pytest.raises(UsageError, match=message):
            trim_bundle(bundle, tmp_path / "new", kept)
        assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="the output is the bundle that is trimmed"):
        trim_bundle(tiny_pair_bundle, tiny_pair_bundle, kept, force=True)
    with pytest.raises(UsageError, match="trimmed already cannot be trimmed again"):
        trim(trimmed_pair / "draft/model.onnx", tmp_path / "model.onnx", kept)


def test_a_trimmed_draft_is_measured_and_its_arbiter_certified_again(tiny_pair_bundle, tmp_path):
    """What docs/draft-vocabulary.md and docs/arbiter.md tell people to run on a trimmed bundle."""
    from cospec.calibration.quality.cli import main as bench
    from cospec.models import tiny_pair

    kept = some_ids(tiny_pair_bundle)
    bundle = trim_bundle(tiny_pair_bundle, tmp_path / "trimmed", kept)
    arbiter = shutil.copytree(tiny_pair.ARBITER, tmp_path / "arbiter")
    words = ["--engine-dir", bundle, "--tasks", "tiny:validation", "--items", 3, "--max-tokens", 32]
    words = [str(word) for word in [*words, "--json"]]
    found = CliRunner().invoke(main, ["certify", "--arbiter", str(arbiter), *words])
    assert found.exit_code == 0, found.output
    certified = json.loads(found.stdout)["modes"]
    found = CliRunner().invoke(bench, ["quality", "--modes", "target,draft,strict,collab", *words])
    assert found.exit_code == 0, found.output
    measured = json.loads(found.stdout)["modes"]
    for mode in ("target", "draft", "strict", "collab"):
        assert measured[mode]["n"] == 3
        assert measured[mode]["tokens_per_item"] == certified[mode]["tokens_per_item"]
