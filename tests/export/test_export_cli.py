"""cospec-export as a user meets it: each bad input has its own words and exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands_export import contents, export, refused
from factories import random_checkpoint

from cospec.export import cli
from cospec.runtime.bundle.reader import Bundle

# What goes well.


def test_json_names_the_bundle(llama, models, trace_once):
    result = export("--target", llama, "--draft", "none", "--output", models / "mine", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer.keys() == {"bundle", "seconds"}
    assert Path(answer["bundle"]) == models / "mine"
    assert answer["seconds"] > 0
    assert result.stderr == "", "quiet when not a terminal"
    assert Bundle.open(models / "mine").manifest.models.draft is None


def test_the_default_place_is_models_and_the_name(llama, tmp_path, trace_once, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = export("--target", f"{llama}/", "--draft", "none")
    assert result.exit_code == 0, result.output
    assert contents(tmp_path / "models") == ["llama"]
    assert Bundle.open(tmp_path / "models" / "llama").manifest.name == "llama"
    assert 'cospec-run --engine-dir models/llama "your prompt"' in result.stdout


def test_a_template_that_cannot_be_compiled_can_be_left_out(damaged, models, trace_once):
    (damaged / "chat_template.jinja").write_text("{% for m in messages %}")
    arguments = ("--target", damaged, "--draft", "none", "--output", models / "mine")
    result = export(*arguments)
    assert result.exit_code == 5
    assert "cannot be compiled" in result.stderr
    assert "--no-chat-template" in result.stderr
    assert contents(models) == []
    result = export(*arguments, "--no-chat-template")
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(models / "mine")
    assert bundle.manifest.chat_template is None
    assert not (bundle.root / "chat.json").exists()
    certificate = json.loads((bundle.root / "certificate.json").read_text())
    assert certificate["text"]["texts"] > certificate["text"]["conversations"] == 0


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("tiny", "tiny"),
        ("org/Some-Model", "Some-Model"),
        ("/data/checkpoints/mine/", "mine"),
        ("here/model.Q4_1.gguf", "model.Q4_1"),
        ("MODEL.GGUF", "MODEL"),
        (".", "folder"),
        ("inner/..", "folder"),
    ],
)
def test_default_names(target, name, tmp_path, monkeypatch):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "folder")
    assert cli._default_output(target) == Path("models") / name


def test_the_printed_command_can_be_pasted(llama, tmp_path, trace_once):
    output = tmp_path / "it's here"
    result = export("--target", llama, "--draft", "none", "--output", output)
    assert result.exit_code == 0, result.output
    command = shlex.split(result.stdout.splitlines()[-1].removeprefix("Try it:"))
    assert command == ["cospec-run", "--engine-dir", str(output), "your prompt"]


def test_the_output_may_be_the_working_folder(llama, tmp_path, trace_once, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = export("--target", llama, "--draft", "none", "--output", ".")
    assert result.exit_code == 0, result.output
    assert Bundle.open(tmp_path / "here").manifest.name == "here"


# What happens in the middle. A real process that traces a real model: it reports when it begins to.

SLOW_EXPORT = """
import sys
from cospec.export import cli, graph
right = graph.trace
def trace(*args):
    print("tracing", flush=True)
    return right(*args)
graph.trace = trace
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT: POSIX")
def test_a_second_export_is_refused_and_ctrl_c_leaves_nothing(llama, models, tmp_path):
    # Deep enough for a trace of many seconds.
    deep = random_checkpoint(tmp_path / "deep", "llama", layers=16)
    output = models / "x"
    command = [sys.executable, "-c", SLOW_EXPORT, "--target", str(deep), "--draft", "none"]
    with subprocess.Popen(
        [*command, "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "tracing\n"
        second = export("--target", llama, "--draft", "none", "--output", output)
        time.sleep(0.5)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=60)
    refused(second, 7, "another export is writing it", f"process {first.pid}")
    assert first.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert [path.name for path in models.iterdir()] == [".x.lock"]
