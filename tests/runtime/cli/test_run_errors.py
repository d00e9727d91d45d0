"""What `cospec-run` says of bad input, damaged bundles and interrupts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from commands_run import COMMAND, PROMPT, call, launch

from cospec.runtime.decoding.session import Session


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        ([""], None, 8, "the prompt is empty"),
        ([], "\n", 8, "the prompt is empty"),
        (["--raw", ""], None, 8, "the prompt is empty"),
        (["0" * 65], None, 8, "this bundle holds 64"),
        (["--raw", "a\udcff"], None, 8, "not valid Unicode"),
        (["--max-tokens", "0", "x"], None, 2, "max_tokens is 0"),
        (["--num-draft-tokens", "-1", "x"], None, 2, "num_draft_tokens is -1"),
        (["--threads", "0", "x"], None, 2, "--threads is 0"),
        (["--mode", "collab", "x"], None, 2, "this bundle has no arbiter"),
        (["--mode", "oracle", "x"], None, 2, "'oracle' is not"),
        (["--threshold", "0.5", "x"], None, 2, "in the mode 'collab' only"),
        (["--drafter", "oracle", "x"], None, 2, "unknown drafter 'oracle'"),
        (["--provider", "cuda", "x"], None, 2, "CPU build"),
        (["--top-p", "0", "x"], None, 2, "top_p is 0"),
        (["--timeout", "0", "x"], None, 2, "timeout is 0"),
        (["--stop", "", "x"], None, 2, "a text of length >= 1"),
        (["--logprobs", "1", "x"], None, 2, "--logprobs shows nothing without --json"),
        (["--raw", "--system", "s", "x"], None, 2, "does not go with --raw"),
    ],
)
def test_bad_input_has_a_message_and_an_exit_code(root, arguments, stdin, code, message):
    result = call("--engine-dir", root, *arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_an_error_with_json_is_an_object_too(root):
    result = call("--engine-dir", root, "--json", "")
    assert result.exit_code == 8
    error = json.loads(result.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("PromptError", 8)
    assert "the prompt is empty" in error["message"]


@pytest.mark.parametrize("pair", ["--json --jsonl", "--jsonl --provenance", "--json --provenance"])
def test_forms_of_output_that_exclude_each_other(root, pair):
    result = call("--engine-dir", root, *pair.split(), PROMPT)
    assert result.exit_code == 2
    assert "does not go with --" in json.loads(result.stdout)["error"]["message"]


def test_no_bundle(tmp_path):
    result = call("--engine-dir", tmp_path, "x")
    assert result.exit_code == 3
    assert "no bundle here" in result.stderr
    assert "cospec-export" in result.stderr


def test_several_bundles_are_listed(root, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(root, tmp_path / name)
    result = call("--engine-dir", tmp_path, "x")
    assert result.exit_code == 3
    assert "2 bundles: one, two" in result.stderr


@pytest.mark.parametrize(
    "relative", ["target/model.onnx", "draft/model.onnx.data", "tokenizer.json"]
)
def test_a_damaged_bundle(root, tmp_path, relative):
    shutil.copytree(root, tmp_path / "tiny")
    path = tmp_path / "tiny" / relative
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = call("--engine-dir", tmp_path, "x")
    assert result.exit_code == 3
    assert str(path) in result.stderr
    assert "SHA-256" in result.stderr


def test_ctrl_c_ends_with_130_and_keeps_what_was_printed(root, monkeypatch):
    pieces = Session._pieces

    def interrupted(self, *arguments):
        stream = pieces(self, *arguments)
        yield next(stream)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_pieces", interrupted)
    result = call("--engine-dir", root, PROMPT)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_process_of_its_own_is_quiet_on_stderr_and_prints_in_any_encoding(root, chat, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    arguments = ("--engine-dir", root, "--max-tokens", 12)
    done = launch(*arguments, input=PROMPT, env=environment, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert not chat.text.isascii()
    expected = chat.text.encode(encoding, errors="replace").decode(encoding)
    assert done.stdout == f"started\n{expected}\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_ctrl_c_while_the_prompt_is_read(root):
    with subprocess.Popen(
        [*COMMAND, "--engine-dir", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.5)  # until it waits for its input
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.strip() == "interrupted"


def test_nothing_is_written_to_the_home_folder_and_nothing_is_reported(root, tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if name[:4] not in ("ORT_", "XDG_")
    }
    environment["HOME"] = str(tmp_path)
    done = launch("--engine-dir", root, "--max-tokens", 2, "Q:", env=environment, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
