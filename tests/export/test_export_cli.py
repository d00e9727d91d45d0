"""cospec-export as a user meets it: each bad input has its own words and exit code."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from factories import random_checkpoint, write_tokenizer

from cospec.export import cli, graph, memory
from cospec.export.attention import Lowering
from cospec.models.families import FAMILIES
from cospec.runtime.bundle.reader import Bundle

ONE_SCREEN = 24  # lines
UNREACHABLE = "http://127.0.0.1:9"  # nothing listens there: as good as no network, and never slow


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def contents(folder: Path) -> list[str]:
    """Names in a folder; the lock file of a writer stays, by design."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture(scope="module")
def llama(checkpoint_of: Callable[..., Path]) -> Path:
    return checkpoint_of("llama", layers=1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Where bundles go."""
    return tmp_path / "models"


@pytest.fixture
def damaged(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    shutil.copytree(llama, tmp_path / "damaged")
    return tmp_path / "damaged"


@pytest.fixture(scope="module")
def trace_once() -> Iterator[pytest.MonkeyPatch]:
    """Repeat the first trace for every export of the module: the same checkpoint, the same graph."""
    right, kept = graph.trace, {}

    def trace(
        module: Any, lowering: Lowering, capacity: int, vocab_size: int, unshared: Any, *of: Any
    ) -> Any:
        key = (lowering, capacity, vocab_size, module.dtype, *unshared)
        if key not in kept:
            kept[key] = right(module, lowering, capacity, vocab_size, unshared, *of)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", trace)
        yield patch


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


# What the user got wrong.


def refused(result: Result, code: int, *parts: str) -> None:
    """The command ended with `code`, and one screen of its error text holds all `parts`."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) <= ONE_SCREEN
    for part in parts:
        assert part in result.stderr


def test_a_missing_checkpoint(models):
    refused(export("--target", "./nowhere", "--output", models / "x"), 6, "./nowhere", "no such")
    assert contents(models) == []


def test_an_unknown_name(models):
    result = export("--target", "lama-8b", "--output", models / "x")
    refused(result, 6, "'lama-8b' is no preset", "Did you mean llama-8b?")


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (truncate_weights, ["model.safetensors"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["safetensors"]),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            ["config.json", "not valid JSON"],
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer"]),
        (drop_a_weight, ["1 missing from the files", "up_proj"]),
    ],
    ids=["truncated weights", "no weights", "broken config", "broken tokenizer", "missing weight"],
)
def test_a_corrupt_checkpoint(damage, parts, damaged, models):
    damage(damaged)
    result = export("--target", damaged, "--draft", "none", "--output", models / "x")
    refused(result, 6, str(damaged), *parts)
    assert contents(models) == []


def test_an_unsupported_architecture_is_named_with_the_list(damaged, models):
    config = json.loads((damaged / "config.json").read_text())
    config |= {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}
    (damaged / "config.json").write_text(json.dumps(config))
    result = export("--target", damaged, "--draft", "none", "--output", models / "x")
    refused(result, 6, "BloomForCausalLM", *FAMILIES.values())
    assert contents(models) == []


def test_different_vocabularies(llama, damaged, models):
    write_tokenizer(damaged, size=299, extra=["<other>"])
    result = export("--target", llama, "--draft", damaged, "--output", models / "x")
    refused(result, 6, "different vocabularies", "First difference: id 299 is", "'<other>'")
    assert contents(models) == []


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--capacity", 257, ["257", "which is 256", "--capacity 256 or less"]),
        ("--capacity", 3, ["too small", "16 at least"]),
        ("--num-draft-tokens", 65, ["0 to 64"]),
        ("--num-draft-tokens", -1, ["0 to 64"]),
    ],
)
def test_a_number_out_of_range(option, value, parts, llama, models):
    arguments = ["--target", llama, "--draft", "none", "--output", models / "x"]
    refused(export(*arguments, option, value), 2, *parts)
    assert contents(models) == []


def test_no_target_is_a_usage_error_in_json_too():
    result = export("--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "MissingParameter"
    assert "--target" in error["message"]


def test_errors_in_json_have_their_shape(models):
    result = export("--target", "./nowhere", "--output", models / "x", "--json")
    assert result.exit_code == 6
    error = json.loads(result.stdout)["error"]
    assert error.keys() == {"type", "message", "hint", "exit_code"}
    assert (error["type"], error["exit_code"]) == ("CheckpointError", 6)
    assert "./nowhere" in error["message"]
    assert result.stderr.startswith("error: ")


# What the machine does not give.


@pytest.mark.parametrize("what", ["available_memory", "free_disk"])
def test_no_room_is_said_before_any_work_with_both_figures(what, llama, models, monkeypatch):
    monkeypatch.setattr(memory, what, lambda *_: 12_300_000)
    result = export("--target", llama, "--draft", "none", "--output", models / "x")
    refused(result, 7, "0.0 GB", "This " + ("export" if what == "available_memory" else "bundle"))
    assert not models.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_fills_up_meanwhile(llama, models, trace_once, monkeypatch):
    monkeypatch.setattr(graph, "write", lambda *_: Path("/dev/full").write_bytes(b"real ENOSPC"))
    result = export("--target", llama, "--draft", "none", "--output", models / "x")
    refused(result, 7, "the disk is full", str(models))
    assert contents(models) == []


def test_a_folder_that_cannot_be_made(llama, models):
    models.write_text("a file")
    result = export("--target", llama, "--draft", "none", "--output", models / "x")
    refused(result, 7, "cannot be written", str(models))
    assert models.read_text() == "a file"


def test_an_existing_bundle_is_replaced_with_force_only(llama, models, trace_once):
    arguments = ["--target", llama, "--draft", "none", "--output", models / "x"]
    assert export(*arguments).exit_code == 0
    seal = Bundle.open(models / "x").manifest.seal
    refused(export(*arguments, "--num-draft-tokens", 2), 7, "a bundle is there already", "--force")
    assert Bundle.open(models / "x").manifest.seal == seal
    assert export(*arguments, "--num-draft-tokens", 2, "--force").exit_code == 0
    assert Bundle.open(models / "x").manifest.generation.num_draft_tokens == 2
    assert contents(models) == ["x"]


def run_without_hub(
    tmp_path: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run cospec-export where no hub answers and no cache holds anything."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": UNREACHABLE, "HF_HOME": str(tmp_path / "hf")}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from cospec.export.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    return done, time.monotonic() - started


def test_llama_8b_without_a_network_is_one_screen_of_help(tmp_path):
    done, seconds = run_without_hub(tmp_path, "--target", "llama-8b", "--trt")
    assert done.returncode == 6, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= ONE_SCREEN
    for part in (
        "llama-8b (meta-llama/Llama-3.1-8B-Instruct)",
        "cannot be reached",
        "gated",
        "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct",
        "--target ./Llama-3.1-8B-Instruct",
    ):
        assert part in done.stderr
    assert contents(tmp_path / "models") == []
    assert seconds < 60  # a few, on cores that are not busy


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
