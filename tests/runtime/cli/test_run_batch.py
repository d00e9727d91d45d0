"""cospec-run's batch: answers, bad lines, and a job that goes on where it stopped."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cospec
from cospec.runtime.cli.run import main
from cospec.runtime.decoding.session import Session


@pytest.fixture
def batch(root: Path, tmp_path: Path) -> Batch:
    return Batch(root, tmp_path)


class Batch:
    """An input, an output, and the command between them."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"

    def ask(self, *rows: object) -> None:
        texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.source.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")

    def run(self, *options: str) -> Result:
        files = ("--batch", str(self.source), "--output", str(self.output))
        arguments = ["--engine-dir", str(self.root), "--max-tokens", "6", *files, *options]
        return CliRunner().invoke(main, arguments)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]


def test_each_line_is_answered_as_the_api_answers_it(batch):
    batch.ask(
        {"id": "x", "prompt": "a"},
        {"messages": [{"role": "user", "content": "b"}], "max_tokens": 3},
        "",
        {"prompt": "c", "temperature": 1, "seed": 5, "top_k": 9, "stop": "q", "logprobs": 1},
        {"prompt": "d", "num_draft_tokens": "auto", "logit_bias": {"7": 100}},
    )
    result = batch.run("--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"answered": 4, "kept": 0, "failed": 0}
    session = cospec.load(batch.root)

    def answer(text: str, max_tokens: int = 6, **sampling: Any) -> str:
        params = cospec.SamplingParams(**sampling)
        messages = [{"role": "user", "content": text}]
        return session.generate(messages, max_tokens=max_tokens, sampling=params).text

    rows = batch.rows()
    assert [row["id"] for row in rows] == ["x", 2, 4, 5], (
        "a line's number where it names itself not"
    )
    assert rows[0]["text"] == answer("a")
    assert rows[1]["text"] == answer("b", 3)
    assert rows[2]["text"] == answer("c", temperature=1, seed=5, top_k=9, stop=("q",))
    assert rows[2]["seed"] == 5
    assert len(rows[2]["logprobs"]) == len(rows[2]["tokens"])
    assert rows[3]["tokens"] == [7] * 6
    assert {"finish_reason", "stats", "provenance"} <= rows[0].keys()


def test_system_and_raw(batch):
    batch.ask({"prompt": "a"})
    assert batch.run("--system", "s").exit_code == 0
    session = cospec.load(batch.root)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert batch.rows()[0]["text"] == session.generate(messages, max_tokens=6).text
    batch.output.unlink()
    assert batch.run("--raw").exit_code == 0
    assert batch.rows()[0]["text"] == session.generate("a", max_tokens=6).text


BAD = [
    ("{", "not valid JSON"),
    ("[]", "not a JSON object"),
    ({}, "either a prompt or messages"),
    ({"prompt": "a", "messages": []}, "either a prompt or messages"),
    ({"prompt": 1}, "the prompt is no text"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": "0" * 65}, "this bundle holds 64"),
    ({"messages": ["a"]}, "messages is no list of objects"),
    ({"prompt": "a", "id": 1.5}, "the id is neither"),
    ({"prompt": "a", "id": "good"}, "the id 'good' is that of line 1 as well"),
    ({"prompt": "a", "temprature": 1}, "there is no option 'temprature'"),
    ({"prompt": "a", "temperature": "1"}, "temperature is '1', but must be a number"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens is True, but must be an integer"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
    ({"prompt": "a", "top_p": 2}, "top_p is 2"),
    ({"prompt": "a", "stop": [1]}, "stop is [1], but must be a text"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias is {'x': 1}, but must be an integer"),
    ({"prompt": "a", "logit_bias": {"999999": 1}}, "logit_bias names the token 999999"),
    ({"prompt": "a", "mode": "oracle"}, "unknown mode 'oracle'"),
]


def test_bad_lines_are_recorded_with_keep_going(batch):
    batch.ask({"id": "good", "prompt": "a"}, *(row for row, _ in BAD))
    result = batch.run("--keep-going")
    assert result.exit_code == 1
    assert f"1 answered, 0 were there already, {len(BAD)} failed" in result.stderr
    rows = batch.rows()
    assert rows[0]["id"] == "good"
    for number, (row, (_, message)) in enumerate(zip(rows[1:], BAD, strict=True), 2):
        assert row["line"] == number
        assert message in row["error"]["message"]


@pytest.mark.parametrize(("row", "message"), [BAD[0], BAD[6], BAD[10]])
def test_a_bad_line_stops_everything_before_anything_is_answered(batch, row, message):
    batch.ask({"id": "good", "prompt": "a"}, row)
    result = batch.run()
    assert result.exit_code in (2, 8)
    assert f"{batch.source}, line 2: " in result.stderr
    assert message in result.stderr
    assert not batch.output.exists()


def test_a_stopped_job_goes_on_and_a_half_line_is_repaired(batch, monkeypatch):
    batch.ask(*({"id": f"n{i}", "prompt": str(i)} for i in range(4)))
    assert batch.run().exit_code == 0
    whole = batch.output.read_bytes()
    lines = whole.splitlines(keepends=True)
    batch.output.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    asked = []
    generate = Session.generate

    def counting(self, prompt, **options):
        asked.append(prompt[0]["content"])
        return generate(self, prompt, **options)

    monkeypatch.setattr(Session, "generate", counting)
    result = batch.run()
    assert "2 answered, 2 were there already, 0 failed" in result.stderr
    assert asked == ["2", "3"]
    assert [row["id"] for row in batch.rows()] == ["n0", "n1", "n2", "n3"]
    assert [row["tokens"] for row in batch.rows()] == [json.loads(x)["tokens"] for x in lines]
    assert batch.output.read_bytes().startswith(b"".join(lines[:2]))


def test_what_failed_is_tried_again(batch):
    batch.ask({"id": "a", "prompt": "a"}, {"id": "b", "promt": "b"})
    assert batch.run("--keep-going").exit_code == 1
    batch.ask({"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b"})
    result = batch.run()
    assert result.exit_code == 0
    assert "1 answered, 1 were there already, 0 failed" in result.stderr
    assert [(row["id"], "error" in row) for row in batch.rows()] == [("a", False), ("b", False)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"id": "a", "prompt": "other"}], (), "line 1 answers 'a' as it is not asked any more"),
        ([{"id": "a", "prompt": "a"}], ("--seed", "1"), "as it is not asked any more"),
        ([{"id": "b", "prompt": "a"}], (), "line 1 answers 'a', which is not asked"),
    ],
)
def test_answers_to_something_else_are_not_mixed(batch, rows, options, message):
    batch.ask({"id": "a", "prompt": "a"})
    assert batch.run().exit_code == 0
    before = batch.output.read_bytes()
    batch.ask(*rows)
    result = batch.run(*options)
    assert (result.exit_code, batch.output.read_bytes()) == (2, before)
    assert message in result.stderr


def test_a_file_that_is_no_output_is_left_alone(batch):
    batch.ask({"prompt": "a"})
    batch.output.write_text("precious\nnotes\n", encoding="utf-8")
    result = batch.run()
    assert result.exit_code == 2
    assert "line 1 is no answer" in result.stderr
    assert batch.output.read_text(encoding="utf-8") == "precious\nnotes\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "x"), "--batch needs --output"),
        (("--output", "x"), "--output needs --batch"),
        (("--keep-going", "p"), "--keep-going needs --batch"),
        (("--batch", "x", "--output", "y", "p"), "--batch does not go with PROMPT"),
        (
            ("--batch", "x", "--output", "y", "--trace", "t.html"),
            "--batch does not go with --trace",
        ),
        (("--batch", "/nowhere", "--output", "y"), "/nowhere cannot be read"),
    ],
)
def test_options_that_do_not_fit_together(root, options, message):
    result = CliRunner().invoke(main, ["--engine-dir", str(root), *options])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/null", "/dev/zero", "/dev/full", "link"])
def test_an_output_that_is_no_regular_file_is_neither_read_nor_replaced(batch, tmp_path, kind):
    batch.ask({"prompt": "a"})
    batch.output = tmp_path / "special"
    if kind == "pipe":
        os.mkfifo(batch.output)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(batch.output))
        server.close()
    elif kind == "link":
        batch.output.symlink_to("/dev/zero")
    else:
        batch.output = Path(kind)
    before = batch.output.lstat()
    result = batch.run()
    assert result.exit_code == 7, result.output
    assert "is not a regular file" in result.stderr
    assert batch.output.lstat().st_ino == before.st_ino
    assert batch.output.lstat().st_mode == before.st_mode


def test_a_linked_output_is_written_and_stays_a_link(batch, tmp_path):
    batch.ask({"prompt": "a"})
    batch.output = tmp_path / "link"
    batch.output.symlink_to(tmp_path / "real.jsonl")
    assert batch.run().exit_code == 0
    (tmp_path / "real.jsonl").write_bytes((tmp_path / "real.jsonl").read_bytes() + b"half")
    assert "0 answered, 1 were there already" in batch.run().stderr
    assert batch.output.is_symlink()
    assert len(batch.rows()) == 1
