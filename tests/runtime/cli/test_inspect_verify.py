"""cospec-inspect and cospec-verify as a user or a script sees them: output, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from cospec.errors import BundleError, GateError
from cospec.runtime.bundle.manifest import (
    EnginesEntry,
    GenerationDefaults,
    KeptWeights,
    Manifest,
    ModelEntry,
    Models,
)
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.bundle.writer import BundleWriter
from cospec.runtime.cli.common import exit_codes
from cospec.runtime.cli.inspect import main as inspect_main
from cospec.runtime.cli.verify import main as verify_main
from cospec.runtime.tensorrt.plan_store import PlanKey, PlanStore, graph_sha256
from cospec.runtime.text.codec import TextCodec

TARGET = ModelEntry(
    graph="target/model.onnx",
    source="some-org/some-model",
    architecture="LlamaForCausalLM",
    parameters=1_234_567,
    hidden_size=16,
    kv_shapes=((2, 8), (2, 8)),
    cache_dtype="float32",
)
MANIFEST = Manifest(
    name="tiny",
    created_by={"cospec": "0.1.0", "torch": "2.9.1"},
    lowering="gqa",
    precision="fp32",
    capacity=64,
    vocab_size=100,
    summary_top=4,
    models=Models(TARGET),
    generation=GenerationDefaults(
        bos_token_id=None, eos_token_ids=(1, 2), num_draft_tokens=4, max_tokens=32, prefill_chunk=16
    ),
    tokenizer="tokenizer.json",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with BundleWriter(tmp_path / "models" / "tiny") as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        writer.path("target/model.onnx.data").write_bytes(b"x" * 1536)
        writer.path("tokenizer.json").write_bytes(b"{}")
        return writer.commit(MANIFEST)


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_inspect_shows_what_matters(root):
    result = call(inspect_main, root)
    assert result.exit_code == 0, result.output
    for fact in (
        "gqa, fp32",
        "64 tokens",
        "4 draft tokens a round, at most 32 new tokens, prefill in chunks of 16",
        "sampling    greedy\n  begin       no token\n  end         1\n              2\n",
        "cospec 0.1.0, torch 2.9.1",
        "target  LlamaForCausalLM from some-org/some-model",
        "1,234,567; 1.5 KiB on disk, 0.01 bits per weight\n  weights     fp32\n",
        "memory      at least 17.5 KiB: weights and KV cache",
        "2 with 2 KV heads of 8; hidden size 16",
        "16.0 KiB for 64 tokens, float32",
        "1.5 KiB  target/model.onnx.data",
        "hashes not checked",
    ):
        assert fact in result.stdout
    assert "draft  " not in result.stdout


def test_inspect_json_is_the_manifest_and_what_follows(root):
    facts = json.loads(call(inspect_main, root, "--json").stdout)
    assert facts["manifest"]["models"]["target"]["kv_shapes"] == [[2, 8], [2, 8]]
    assert facts["kv_cache_bytes"] == {"target": 2 * 2 * 64 * 16 * 4}
    assert facts["bundle"] == str(root)
    assert facts["seal"] == json.loads((root / "cospec.json").read_text())["seal"]
    assert facts["hashes_checked"] is False


def test_inspect_shows_the_kinds_that_were_kept(tmp_path):
    q4 = KeptWeights(kind="Q4_K", tensors=169, weights=1_230_000, bits_per_weight=4.75)
    q6 = KeptWeights(kind="Q6_K", tensors=29, weights=4_000, bits_per_weight=8.5, max_error=0.0012)
    with BundleWriter(tmp_path / "kept") as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        writer.path("tokenizer.json").write_bytes(b"{}")
        models = Models(replace(TARGET, kept_weights=(q4, q6)))
        bundle = writer.commit(replace(MANIFEST, models=models))
    assert (
        "  weights     Q4_K: 169 tensors, 1,230,000 weights of 4.75 bits, exact\n"
        "              Q6_K: 29 tensors, 4,000 weights of 8.5 bits, off by up to 0.0012\n"
    ) in call(inspect_main, bundle).stdout
    facts = json.loads(call(inspect_main, bundle, "--json").stdout)["models"]["target"]
    assert facts["memory_bytes"] == facts["disk_bytes"] + 2 * 2 * 64 * 16 * 4


def test_inspect_shows_what_the_engines_are_for_and_which_are_there(tmp_path):
    entry = EnginesEntry(device="thor-jp7.2", flavour="tensorrt", trt_version="10.16", sm=110)
    with BundleWriter(tmp_path / "thor") as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        writer.path("tokenizer.json").write_bytes(b"{}")
        bundle = writer.commit(replace(MANIFEST, lowering="scatter", engines=entry))
    said = call(inspect_main, bundle).stdout
    assert "exported for thor-jp7.2 (TensorRT 10.16, SM 110)\n  none built yet\n" in said
    graph = graph_sha256(read_manifest(bundle).files, "target/model.onnx")
    for sm, of in ((110, graph), (87, "0" * 64)):
        PlanStore(bundle).save("target", PlanKey(of, "tensorrt", "10.16.2.1", sm), b"x" * 2048, "")
    (bundle / "engines" / "mine").mkdir()
    (bundle / "engines" / "mine" / "target.plan").write_bytes(b"")
    lines = call(inspect_main, bundle).stdout.splitlines()
    assert "  tensorrt-10.16.2.1-sm110/target  2.0 KiB" in lines
    assert "  tensorrt-10.16.2.1-sm87/target  2.0 KiB, of other graphs: never loaded" in lines
    plans = json.loads(call(inspect_main, bundle, "--json").stdout)["plans"]
    assert {plan["folder"]: plan["fits"] for plan in plans} == {
        "mine": False,
        "tensorrt-10.16.2.1-sm110": True,
        "tensorrt-10.16.2.1-sm87": False,
    }


def test_inspect_finds_the_one_bundle_below_and_does_not_hash(root):
    (root / "target/model.onnx").write_bytes(b"hparg")
    assert call(inspect_main, root.parent).exit_code == 0
    (root / "target/model.onnx").write_bytes(b"longer graph")
    assert call(inspect_main, root.parent).exit_code == BundleError.exit_code


def test_verify_says_ok_for_each_file(root):
    result = call(verify_main, root)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:3] == [
        "ok   target/model.onnx",
        "ok   target/model.onnx.data",
        "ok   tokenizer.json",
    ]
    assert lines[3].startswith("3 files, 1.5 KiB: all as exported (seal ")


def test_verify_repeats_the_text_gate_without_transformers(tiny_bundle):
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from cospec.runtime.cli.verify import main; main()"
    )
    command = [sys.executable, "-c", code, "--text", str(tiny_bundle.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ texts, \d+ conversations: tokens as in transformers 5\S+", last)
    facts = json.loads(call(verify_main, "--text", "--json", tiny_bundle.root).stdout)
    assert facts["text"]["conversations"] > 20 < facts["text"]["texts"] + 10
    assert json.loads(call(verify_main, "--json", tiny_bundle.root).stdout)["text"] is None


def test_verify_finds_text_that_becomes_other_tokens(tiny_bundle, monkeypatch):
    right = TextCodec.encode

    def encode(codec: TextCodec, text: str) -> list[int]:
        return right(codec, text.replace("42", "43"))

    monkeypatch.setattr(TextCodec, "encode", encode)
    result = call(verify_main, "--text", tiny_bundle.root)
    assert result.exit_code == GateError.exit_code
    assert "a sentence: the ids differ from token" in result.stderr


def test_verify_says_when_a_bundle_has_no_record_of_its_text(root):
    result = call(verify_main, "--text", root)
    assert result.exit_code == 2
    assert "has no text_gate.json" in result.stderr


def test_verify_names_every_bad_file_with_both_hashes(root):
    (root / "target/model.onnx").write_bytes(b"hparg")
    (root / "tokenizer.json").unlink()
    result = call(verify_main, root)
    assert result.exit_code == 3
    assert "BAD  target/model.onnx has other contents" in result.stdout
    assert "     expected " in result.stdout
    assert "     found    " in result.stdout
    assert "ok   target/model.onnx.data" in result.stdout
    assert "BAD  tokenizer.json is missing" in result.stdout
    assert "2 of 3 files are not what was exported" in result.stderr
    assert "  -> Copy the bundle again" in result.stderr


def test_verify_json_of_a_damaged_bundle_is_one_object(root):
    (root / "target/model.onnx").write_bytes(b"hparg")
    (root / "extra").write_bytes(b"")
    result = call(verify_main, root, "--json")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert facts["ok"] is False
    assert facts["unlisted"] == ["extra"]
    bad, good, _ = facts["files"]
    assert (bad["path"], bad["ok"], good["ok"]) == ("target/model.onnx", False, True)
    assert bad["expected_sha256"] != bad["actual_sha256"]
    assert good["expected_sha256"] == good["actual_sha256"]


def test_verify_warns_of_unlisted_files_and_succeeds(root):
    (root / "no\x1b[31mtes").write_bytes(b"")
    (root / "engines").mkdir()
    (root / "engines" / "a.plan").write_bytes(b"")
    result = call(verify_main, root)
    assert result.exit_code == 0
    assert r"warning: 'no\x1b[31mtes' is not in the manifest" in result.stdout
    assert "a.plan" not in result.stdout
    facts = json.loads(call(verify_main, root, "--json").stdout)
    assert facts["ok"] is True
    assert facts["unlisted"] == ["no\x1b[31mtes"]


@pytest.mark.parametrize("command", [inspect_main, verify_main])
def test_errors_are_a_line_a_hint_and_an_exit_code(command, tmp_path):
    result = call(command, tmp_path)
    assert result.exit_code == 3
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path}: no bundle here")
    assert second == "  -> Make one with: cospec-export --target tiny"


@pytest.mark.parametrize("command", [inspect_main, verify_main])
def test_errors_with_json_are_one_object_on_stdout(command, tmp_path):
    result = call(command, tmp_path, "--json")
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "BundleError"
    assert error["exit_code"] == result.exit_code == 3
    assert "no bundle here" in error["message"]
    assert "cospec-export" in error["hint"]


def test_wrong_usage_exits_with_2_and_is_json_when_asked():
    assert call(verify_main).exit_code == 2
    result = call(verify_main, "--json", "--no-such-option")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("command", [inspect_main, verify_main])
def test_help_has_an_example_and_all_exit_codes(command):
    text = call(command, "--help").stdout
    assert (
        f"Example: cospec-{'inspect' if command is inspect_main else 'verify'} models/tiny" in text
    )
    assert "Exit codes:" in text
    for code, meaning in exit_codes():
        assert f"  {code}" in text
        assert meaning.split()[0] in text


def test_as_a_process(root):
    command = [sys.executable, "-m", "cospec.runtime.cli.verify", str(root)]
    (root / "tokenizer.json").write_bytes(b"[]")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "BAD  tokenizer.json" in done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_quiet(root):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cospec.runtime.cli.inspect", str(root)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_neither_torch_nor_a_backend_is_imported(root):
    script = (
        "import sys\nfrom cospec.runtime.cli.verify import main\n"
        "main([sys.argv[1]], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'filelock', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(root)], check=True, timeout=60)
