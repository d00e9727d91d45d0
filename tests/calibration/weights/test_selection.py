"""cospec-calibrate weights: what is measured, what is refused, what is written, and how it resumes."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf_files import random_gguf

import cospec
from cospec.calibration.cli import main
from cospec.calibration.weights import candidates, work_folder
from cospec.calibration.weights import format_speed as speed
from cospec.calibration.weights.format_speed import Turn
from cospec.export.decoder_export import export_decoder
from cospec.export.pipeline import Steps
from cospec.runtime.bundle.reader import Bundle, read_manifest
from cospec.runtime.engines.onnxruntime import OrtEngine

LIMITS = ("--max-perplexity-increase", "100%", "--max-accuracy-loss", "100%")
SHORT = ("--text-tokens", 60)


def call(output: Path, *arguments: object) -> Any:
    return CliRunner().invoke(main, ["weights", "--output", *map(str, [output, *arguments])])


class Exports:
    """Counts what is exported, and the engines that are open whenever one is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, str]] = []
        self.alive: weakref.WeakSet[OrtEngine] = weakref.WeakSet()
        self.open: list[Counter[str]] = []
        real = OrtEngine.__init__

        def opened(engine, graph, *others, **options):
            self.alive.add(engine)
            engine.role = graph.parent.name.split("-")[0]
            real(engine, graph, *others, **options)
            self.open.append(Counter(each.role for each in self.alive))

        def exported(request, path, report):
            self.made.append((request.role, request.weights))
            assert not self.alive, "no engine beside an export"
            return export_decoder(request, path, report)

        patch.setattr(OrtEngine, "__init__", opened)
        patch.setattr(candidates, "export_decoder", exported)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Few rounds: no test depends on their number."""
    monkeypatch.setattr(speed, "ROUNDS", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, Exports, str]:
    output = tmp_path_factory.mktemp("made") / "pair"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "TOKENS", 6)
        patch.setattr(speed, "ROUNDS", 2)
        exports = Exports(patch)
        done = call(
            output, "--target", "tiny", "--formats", "fp16,int4,exact", "--draft-formats", "int8",
            "--tasks", "tiny:validation", "--items", 4, "--text-tokens", 400, *LIMITS, "--json",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    return output, json.loads(done.stdout), exports, done.stderr


def test_the_object(made):
    _, facts, _, _ = made
    assert list(facts["formats"]) == ["fp16", "int4"]
    assert list(facts["drafts"]) == ["int8"]
    assert list(facts["skipped"]["target"]) == ["exact"]
    assert facts["data"]["texts"] == "default"
    assert facts["data"]["scored_tokens"] > 250
    assert facts["data"]["items"] == 4
    half, four = facts["formats"].values()
    assert abs(half["perplexity_increase"]) < abs(four["perplexity_increase"])
    assert half["agreement"] > four["agreement"] > 0.5
    assert (half["accuracy_loss"], half["recipe"]) == (0, None)
    assert four["bytes"] < half["bytes"]
    assert four["recipe"].startswith("int4")
    ratio = half["perplexity"] / facts["reference"]["perplexity"]
    assert half["perplexity_increase"] == pytest.approx(ratio - 1)
    fastest = facts["speed"][0]
    assert facts["chosen"] == {"target": fastest["target"], "draft": "int8"}
    assert {each["rounds"] for each in facts["speed"]} == {2}


def test_the_bundle_is_that_of_an_export(made):
    output, facts, _, _ = made
    models = Bundle.open(output).manifest.models
    assert bool(models.target.kept_weights) == (facts["chosen"]["target"] == "int4")
    assert models.draft.kept_weights
    assert models.arbiter is not None, "the preset's own"
    certificate = json.loads((output / "certificate.json").read_text())
    assert certificate["weights"] == facts
    assert certificate["parity"].keys() == {"target", "draft"}
    assert [path.name for path in output.parent.iterdir() if path.name[0] != "."] == ["pair"]
    assert cospec.load(output).generate("Q: What is 2 + 3?\nA:", max_tokens=4).tokens


def test_one_format_at_a_time(made):
    _, _, exports, _ = made
    assert exports.made == [("target", "fp16"), ("target", "int4"), ("draft", "int8")]
    assert max(count["target"] for count in exports.open) == 1
    assert max(count["draft"] for count in exports.open) == 1


def test_lines_for_each_part(made):
    assert made[3].splitlines() == [
        "the target is not tried in exact: its weights are plain numbers, which 'fp32' stores as they "
        "are",
        "reading the text with the checkpoint",
        *(
            line
            for weights in ("fp16", "int4")
            for line in (
                f"exporting the target in {weights}",
                f"reading the text with the target in {weights}",
                f"answering with the target in {weights}",
            )
        ),
        "exporting the draft in int8",
        "timing",
        "writing the bundle",
    ]


def test_a_terminal_shows_the_time_left(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    with Steps(3) as steps:
        steps.begin("reading", "the first")
        steps.begin("reading", "the second")
        steps.expect(-1)
    shown = screen.getvalue()
    assert "reading: the second" in shown
    assert "2/2 [" in shown
    assert " left]" in shown


def take_turn(session: Any, prompts: Any) -> Turn:
    """A turn whose rate depends on the weights alone: the fewer bits, the faster."""
    models = session.manifest.models
    bits = [each.kept_weights[0].bits_per_weight for each in (models.target, models.draft)]
    return Turn(100 / sum(bits), 10.0, 0.5, 0.0)


def pair_of(folder: Path) -> tuple[object, ...]:
    formats = ("--formats", "int8,int4", "--draft-formats", "int8,int4")
    return ("--target", folder, "--draft", folder, *formats, *SHORT, *LIMITS)


KILLED = """
import os, sys
from cospec.calibration import journal
from cospec.calibration.cli import main
write = journal.Journal.write
def until(self, key, record):
    write(self, key, record)
    if key.startswith("target target-int8"):
        os.kill(os.getpid(), 9)
journal.Journal.write = until
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL: POSIX")
def test_a_killed_run_is_continued(checkpoint_of, tmp_path, monkeypatch):
    folder, output = checkpoint_of("llama", layers=1), tmp_path / "new"
    arguments = pair_of(folder)
    words = [sys.executable, "-c", KILLED, "weights", "--output", output, *arguments]
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    assert (tmp_path / "new.work/target-int8-1/model.onnx").is_file()
    monkeypatch.setattr(candidates, "take_turn", take_turn)
    monkeypatch.setattr(candidates, "read_checkpoint", None)
    exports = Exports(monkeypatch)
    other = call(output, *arguments, "--capacity", 32)
    assert other.exit_code == 2, other.output
    assert "holds an unfinished job with another capacity, text" in other.stderr
    done = call(output, *arguments, "--json")
    assert done.exit_code == 0, done.output
    assert exports.made == [("target", "int4"), ("draft", "int8"), ("draft", "int4")]
    assert json.loads(done.stdout)["chosen"] == {"target": "int4", "draft": "int4"}
    assert not (tmp_path / "new.work").exists()


def test_formats_beyond_the_limits_are_refused_with_the_figures(
    checkpoint_of, tmp_path, monkeypatch
):
    """The checkpoint is made to read better than any graph of it can."""
    real = candidates.read_checkpoint
    monkeypatch.setattr(candidates, "take_turn", take_turn)
    monkeypatch.setattr(
        candidates, "read_checkpoint", lambda *given: (real(*given)[0] * 0.95, real(*given)[1])
    )
    output, exports = tmp_path / "new", Exports(monkeypatch)
    arguments = ("--target", checkpoint_of("llama", layers=1), "--draft", "none", *SHORT)
    arguments = (*arguments, "--formats", "fp16")
    done = call(output, *arguments)
    assert done.exit_code == 5, done.output
    assert "fp16: perplexity rises by" in done.stderr
    assert "5.00% is allowed" in done.stderr
    assert not output.exists()
    assert not (tmp_path / "new.work/target-fp16").exists(), "nobody will use it"
    # A higher limit needs the graph again, but nothing is read again.
    monkeypatch.setattr(candidates, "read_checkpoint", None)
    monkeypatch.setattr(candidates, "read", None)
    monkeypatch.setattr(candidates, "take_turn", lambda *_: Turn(2.0, 1.0, None, 0.0))
    done = call(output, *arguments, *LIMITS)
    assert done.exit_code == 0, done.output
    assert exports.made == [("target", "fp16")] * 2
    assert done.stdout.splitlines()[-1] == "written: target fp16"
    assert read_manifest(output).models.draft is None


def test_a_quantised_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "take_turn", lambda *_: Turn(2.0, 1.0, None, 0.0))
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q5_0", layers=1)
    formats = ("--formats", "exact,fast,int4", *LIMITS)
    done = call(tmp_path / "new", "--target", file, "--draft", "none", *SHORT, *formats, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert list(facts["formats"]) == ["exact", "fast"]
    assert "quantised already" in facts["skipped"]["target"]["int4"]
    assert facts["drafts"] == {}
    assert facts["chosen"]["draft"] is None
    assert read_manifest(tmp_path / "new").models.target.kept_weights


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--formats", "int3"], 2, "unknown weight format 'int3'"),
        (["--draft-formats", "auto"], 2, "unknown weight format 'auto'"),
        (
            ["--formats", "keep,exact"],
            2,
            "can take none of the formats: keep: its weights are plain",
        ),
        (["--draft", "none", "--draft-formats", "int4"], 2, "--draft-formats needs a draft"),
        (["--target", "absent.gguf"], 6, "absent.gguf"),
        (["--tasks", "tiny:exam"], 2, "names no tasks"),
        (["--texts", "absent.txt"], 2, "absent.txt: cannot be read"),
        (["--texts", "EMPTY"], 2, "holds no text"),
        (["--texts", "LATIN"], 2, "is not UTF-8: invalid continuation byte at byte 3"),
        (["--items", "0"], 2, "--items is 0"),
        (["--text-tokens", "1"], 2, "--text-tokens is 1"),
        (["--max-accuracy-loss", "a lot"], 2, "is not a share"),
        (["--max-perplexity-increase", "nan"], 2, "is not a share"),
        (["--capacity", "9999"], 2, "beyond the limit of"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.setattr(candidates, "export_decoder", None)
    (tmp_path / "EMPTY").write_text("\n  \n")
    (tmp_path / "LATIN").write_bytes(b"caf\xe9 noir")
    given = [str(tmp_path / a) if a in ("EMPTY", "LATIN") else a for a in arguments]
    done = call(tmp_path / "new", *([] if "--target" in given else ["--target", "tiny"]), *given)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.work").exists()


def test_a_bundle_that_is_there_is_kept_before_anything_is_computed(made, monkeypatch):
    monkeypatch.setattr(candidates, "export_decoder", None)
    done = call(made[0], "--target", "tiny")
    assert done.exit_code == 7
    assert "--force" in done.stderr


def test_an_interrupted_export_leaves_no_part_of_a_graph(checkpoint_of, tmp_path, monkeypatch):
    def interrupted(request, path, report):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "export_decoder", interrupted)
    done = call(tmp_path / "new", *pair_of(checkpoint_of("llama", layers=1)))
    assert done.exit_code == 130, done.output
    assert sorted(path.name for path in (tmp_path / "new.work").iterdir()) == [
        "journal.jsonl",
        "text",
    ]
    assert work_folder.Journal(tmp_path / "new.work/journal.jsonl").done.keys() == {
        "request",
        "reference",
    }
