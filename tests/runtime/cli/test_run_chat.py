"""cospec-run's conversation, with lines that are piped in and on a terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from arbiters import bundle_with_arbiter, untrained_network
from click.testing import CliRunner, Result

import cospec
from cospec.calibration.arbiter.network_graph import export_arbiter
from cospec.runtime.cli import run_chat
from cospec.runtime.cli.run import main
from cospec.runtime.decoding.chat import Chat
from cospec.runtime.decoding.session import Session


@pytest.fixture(scope="module")
def collab_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arbiter")
    export_arbiter(untrained_network(root), folder / "model.onnx")
    return bundle_with_arbiter(root, folder / "model.onnx", folder / "tiny")


def converse(root: Path, *lines: str, options: tuple[str, ...] = ()) -> Result:
    arguments = ["--engine-dir", str(root), "--chat", "--max-tokens", "6", *options]
    return CliRunner().invoke(main, arguments, input="".join(f"{line}\n" for line in lines))


def answers(root: Path, *texts: str, system: str | None = None, **options: Any) -> list[str]:
    """What the API answers in one conversation."""
    chat = Chat(cospec.load(root), system)
    return [chat.send(text, max_tokens=6, **options).completion().text for text in texts]


def test_lines_are_messages_of_one_conversation(root):
    result = converse(root, "a", "", "b")
    first, second = answers(root, "a", "b")
    assert (result.exit_code, result.stdout) == (0, f"{first}\n{second}\n"), result.output
    assert answers(root, "b") != [second], "the answer depends on the turn before"


def test_a_message_may_begin_with_a_slash(root):
    assert converse(root, "//a").stdout == answers(root, "/a")[0] + "\n"


def test_rewind_takes_turns_back(root):
    result = converse(root, "a", "b", "/rewind", "c", "/rewind 2", "d")
    first, second = answers(root, "a", "b")
    third = answers(root, "a", "c")[1]
    assert result.stdout == f"{first}\n{second}\n{third}\n{answers(root, 'd')[0]}\n"
    assert "turns left: 1" in result.stderr
    assert "turns left: 0" in result.stderr


def test_clear_keeps_the_system_message_and_system_replaces_it(root):
    result = converse(
        root, "a", "/clear", "b", "/system s", "c", "/system", options=("--system", "t")
    )
    first = answers(root, "a", system="t")[0]
    second = answers(root, "b", system="t")[0]
    chat = Chat(cospec.load(root), "s")
    chat.messages += [{"role": "user", "content": "b"}, {"role": "assistant", "content": second}]
    third = chat.send("c", max_tokens=6).completion().text
    assert result.stdout == f"{first}\n{second}\n{third}\n"


def test_stats_of_the_last_answer(root):
    result = converse(root, "/stats", "a", "/stats")
    assert "there was no answer yet" in result.stderr
    assert "tokens       " in result.stderr
    assert "of the target" in result.stderr


def test_mode_and_threshold(collab_root):
    result = converse(
        collab_root, "/threshold 0", "/mode collab", "a", "/mode", "/mode strict", "/clear", "a"
    )
    collab = answers(collab_root, "a", mode="collab", threshold=0)[0]
    strict = answers(collab_root, "a")[0]
    assert collab != strict
    assert result.stdout == f"{collab}\n{strict}\n", result.stderr
    assert result.stderr.count("never certified") == 1
    assert "this has an effect after /mode collab" in result.stderr


def test_settings_and_seeds_of_the_command_line(root):
    sampling = cospec.SamplingParams(temperature=1, seed=3)
    result = converse(root, "a", options=("--temperature", "1", "--seed", "3"))
    assert result.stdout == answers(root, "a", sampling=sampling)[0] + "\n"


def test_save_and_load(root, tmp_path):
    file = tmp_path / "talk.json"
    saved = converse(root, "a", f"/save {file}", options=("--system", "t"))
    assert saved.exit_code == 0, saved.stderr
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [each["role"] for each in messages] == ["system", "user", "assistant"]
    loaded = converse(root, f"/load {file}", "b")
    assert loaded.stdout == answers(root, "a", "b", system="t")[1] + "\n"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("/nonsense", 2, "there is no command /nonsense"),
        ("/mode oracle", 2, "unknown mode 'oracle'"),
        ("/mode collab", 2, "this bundle has no arbiter"),
        ("/threshold x", 2, "'x' is no number"),
        ("/rewind", 2, "cannot take back 1 turns of a conversation of 0"),
        ("/save", 2, "no file was named"),
        ("/save /dev/null/x", 7, "cannot be written"),
        ("/load /nowhere", 2, "is no saved conversation"),
        ("0" * 65, 8, "this bundle holds 64"),
    ],
)
def test_an_error_is_told_and_the_conversation_goes_on(root, line, code, message):
    result = converse(root, line, "a")
    assert message in result.stderr
    assert result.stdout == answers(root, "a")[0] + "\n"
    assert result.exit_code == code, "of the first error, where lines are piped in"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"messages": 1}', '{"messages": [{"role": 1, "content": "x"}]}']
)
def test_what_is_no_conversation_is_not_loaded(root, tmp_path, text):
    (tmp_path / "talk.json").write_text(text, encoding="utf-8")
    result = converse(root, f"/load {tmp_path / 'talk.json'}", "a")
    assert "is no saved conversation" in result.stderr
    assert result.stdout == answers(root, "a")[0] + "\n"


def test_help_names_every_command_and_quit_ends(root):
    result = converse(root, "/help", "/quit", "a")
    assert (result.exit_code, result.stdout) == (0, "")
    for name in ("help", "stats", "mode", "threshold", "rewind", "clear", "save", "load", "system"):
        assert f"/{name} " in result.stderr


def turns(page: Path) -> list[tuple[str, str]]:
    """What was said and answered, as a trace shows it."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    shown = json.loads(found[1])["turns"]
    positions = ([p for each in turn["rounds"] for p in each["positions"]] for turn in shown)
    texts = ("".join(position["text"] for position in each) for each in positions)
    return list(zip((turn["said"] for turn in shown), texts, strict=True))


def test_the_trace_is_that_of_the_whole_conversation(collab_root, tmp_path):
    page = tmp_path / "talk.html"
    options = ("--mode", "collab", "--trace", str(page))
    result = converse(collab_root, "a", "b", options=options)
    assert result.exit_code == 0, result.output
    first, second = answers(collab_root, "a", "b", mode="collab")
    assert turns(page) == [("a", first), ("b", second)]
    assert [each.name for each in tmp_path.iterdir()] == ["talk.html"]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ((), ""),
        (("a", "b", "/rewind", "c"), "ac"),
        (("a", "b", "/rewind 2"), ""),
        (("a", "/clear", "b"), "b"),
        (("a", "/save {talk}", "b", "/load {talk}"), ""),
        (("a", "/save {talk}", "/load {talk}", "b", "/rewind 2", "c"), "c"),
        (("a", "0" * 65, "b"), "ab"),
    ],
)
def test_the_trace_holds_what_is_left_of_the_conversation(root, tmp_path, lines, left):
    page = tmp_path / "talk.html"
    typed = [line.format(talk=tmp_path / "talk.json") for line in lines]
    converse(root, *typed, options=("--trace", str(page)))
    assert "".join(said for said, _ in turns(page)) == left


def test_the_trace_is_written_after_each_turn(root, tmp_path, monkeypatch):
    seen: list[int] = []
    write = run_chat.write_page

    def count(path, shown):
        write(path, shown)
        seen.append(len(turns(path)))

    monkeypatch.setattr(run_chat, "write_page", count)
    converse(root, "a", "b", options=("--trace", str(tmp_path / "talk.html")))
    assert seen == [0, 1, 2]


def test_a_trace_that_cannot_be_written_is_an_error_before_the_first_answer(root, tmp_path):
    result = converse(root, "a", options=("--trace", str(tmp_path / "none" / "talk.html")))
    assert (result.exit_code, result.stdout) == (7, "")
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("option", ["--raw", "--json", "--jsonl"])
def test_options_that_a_conversation_does_not_have(root, option):
    result = converse(root, "a", options=(option,))
    assert result.exit_code == 2
    assert "--chat does not go with" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_the_answer_and_not_the_chat(root, tmp_path, monkeypatch):
    pieces = Session._pieces
    shown: list[list[str]] = []

    def interrupt_the_first(self, *arguments):
        texts: list[str] = []
        shown.append(texts)
        for piece in pieces(self, *arguments):
            texts.append(piece.text)
            yield piece
            if len(shown) == len(texts) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    whole = answers(root, "a")[0]
    monkeypatch.setattr(Session, "_pieces", interrupt_the_first)
    handler = signal.getsignal(signal.SIGINT)
    page = tmp_path / "talk.html"
    result = converse(root, "a", "/rewind", "b", options=("--trace", str(page)))
    assert result.exit_code == 0, result.stderr
    assert turns(page) == [("b", answers(root, "b")[0])]
    assert "[ended: cancelled]" in result.stderr
    assert len(shown[0]) == 2, "the first round, and the end without tokens"
    cut = "".join(shown[0])
    assert len(cut) < len(whole)
    assert result.stdout == f"{cut}\n{answers(root, 'b')[0]}\n"
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_terminal_gets_a_prompt_and_a_history(root, tmp_path):
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(XDG_STATE_HOME=str(tmp_path), TERM="dumb")
        code = "from cospec.runtime.cli.run import main; main()"
        arguments = ["--engine-dir", str(root), "--max-tokens", "6"]
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
    try:
        assert "/help lists the commands" in read_until(terminal, "> ")
        os.write(terminal, b"a\n")
        assert answers(root, "a")[0].encode(errors="replace").decode() in read_until(terminal, "> ")
        os.write(terminal, b"half a line\x03")
        assert "Ctrl-D ends the chat" in read_until(terminal, "> ")
        deadline = time.monotonic() + 30
        while True:
            # One that comes before the line is read is lost.
            os.write(terminal, b"\x04")
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            assert time.monotonic() < deadline, "Ctrl-D does not end the chat"
            time.sleep(0.2)
        assert os.waitstatus_to_exitcode(status) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    history = tmp_path / "cospec" / "history"
    assert "a" in history.read_text(encoding="utf-8").splitlines()
    assert history.stat().st_mode & 0o077 == 0, "nobody else reads it"


def read_until(terminal: int, end: str, seconds: float = 60) -> str:
    """Read a terminal until it shows `end`; without the carriage returns that terminals add."""
    seen = b""
    deadline = time.monotonic() + seconds
    while not seen.endswith(end.encode()) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096)
    return seen.decode(errors="replace").replace("\r\n", "\n")
