"""What `cospec-export` says of bad input and of a machine that lacks something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands_export import ONE_SCREEN, contents, export, refused
from factories import write_tokenizer

from cospec.export import graph, memory
from cospec.models.families import FAMILIES
from cospec.runtime.bundle.reader import Bundle

UNREACHABLE = "http://127.0.0.1:9"  # nothing listens there: as good as no network, and never slow


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
