import json

import pytest

from cospec.calibration.tasks import jsonl
from cospec.calibration.tasks.item import CheckerSpec, Task, user_message
from cospec.calibration.tasks.jsonl import read_tasks, write_tasks
from cospec.errors import ResourceError, UsageError

GOOD = {"id": "a", "prompt": "1+1=", "checker": {"name": "number"}, "answer": "2"}
TASKS = [
    Task("plain", "1+1=", CheckerSpec("number"), "2"),
    Task("chat", user_message("Größe? 😀\n"), CheckerSpec("number", {"tolerance": 0.1}), 2, "k", 9),
    Task("text", "Capital?", CheckerSpec("text"), ["Paris", "París"], stop=("\nQ:", "\n\n")),
    Task("code", "def f():\n", CheckerSpec("python"), {"test": "f()", "prefix": "def f():\n"}),
]


def row(**changes):
    merged = {**GOOD, **changes}
    return {key: value for key, value in merged.items() if value is not ...}


def write(path, *lines):
    path.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    )
    return path


def test_round_trip(tmp_path):
    path = tmp_path / "tasks.jsonl"
    write_tasks(TASKS, path)
    assert read_tasks(path) == TASKS
    assert "Größe? 😀" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["tasks.jsonl"]


def test_one_stop_text_needs_no_list(tmp_path):
    (task,) = read_tasks(write(tmp_path / "t.jsonl", row(stop="Q:")))
    assert task.stop == ("Q:",)


def test_form_of_a_line(tmp_path):
    path = tmp_path / "tasks.jsonl"
    write_tasks(TASKS[1:2], path)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "id": "chat",
        "messages": [{"role": "user", "content": "Größe? 😀\n"}],
        "checker": {"name": "number", "tolerance": 0.1},
        "answer": 2,
        "kind": "k",
        "max_tokens": 9,
    }


def test_blank_lines_mark_and_missing_last_newline(tmp_path):
    path = write(
        tmp_path / "t.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"  ", row(id="b")
    )
    assert [task.id for task in read_tasks(path)] == ["a", "b"]


BAD = [
    (b"{", "not valid JSON"),
    (b'{"id": "cut", "prom', "not valid JSON"),
    (b"[1]", "not a JSON object"),
    (b"\xff\xfe", "not valid JSON"),
    (b'{"id": "a", "id": "b"}', "the key 'id' appears twice"),
    (b'{"answer": NaN}', "not valid JSON"),
    (b"[" * 100, "nested deeper"),
    (json.dumps(row(prompt="\ud800")).encode(), "surrogate"),
    (row(promt="x"), "promt: unknown key"),
    (row(answer=...), "answer: missing key"),
    (row(id=...), "id: missing key"),
    (row(id=3), "id: expected str, got int"),
    (row(id=" "), "id: expected a text that is not blank"),
    (row(prompt=...), "exactly one of 'prompt' and 'messages'"),
    (row(messages=[{"role": "user", "content": "x"}]), "exactly one of"),
    (row(prompt=""), "prompt: expected a text that is not blank"),
    (row(prompt=..., messages=[]), "messages: expected array of length >= 1"),
    (row(prompt=..., messages=[{"role": "user"}]), "messages[0].content: missing key"),
    (row(prompt=..., messages=[{"role": "user", "content": 1}]), "messages[0].content: expected"),
    (row(prompt=..., messages=[{"role": "a", "content": "b", "x": 1}]), "messages[0].x: unknown"),
    (row(checker="number"), "checker: expected object, got str"),
    (row(checker={"tolerance": 1}), "checker: expected an object with a 'name'"),
    (row(checker={"name": "nmber"}), "there is no checker 'nmber'"),
    (row(checker={"name": "number", "x": 1}), "no option 'x'"),
    (row(answer="two"), "the answer 'two' is not a number"),
    (row(kind=1), "kind: expected"),
    (row(max_tokens=0), "max_tokens: expected int >= 1"),
    (row(max_tokens=True), "max_tokens: expected"),
    (row(stop=1), "stop: expected"),
    (row(stop=""), "stop: expected str of length >= 1"),
    (row(stop=[""]), "stop[0]: expected str of length >= 1"),
    (row(stop=["x"] * 17), "stop: expected array of length <= 16"),
    (row(), "the id 'a' is that of line 1"),
]


@pytest.mark.parametrize(("line", "problem"), BAD, ids=lambda value: str(value)[:40])
def test_bad_line_stops_or_is_skipped(tmp_path, line, problem):
    path = write(tmp_path / "t.jsonl", GOOD, line, row(id="c"))
    with pytest.raises(UsageError) as caught:
        read_tasks(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert problem in str(caught.value)
    skipped = []
    tasks = read_tasks(path, on_bad_line="skip", report=skipped.append)
    assert [task.id for task in tasks] == ["a", "c"]
    assert [(bad.number, bad.path) for bad in skipped] == [(2, path)]
    assert problem in skipped[0].problem


def test_skipping_warns_where_nobody_listens(tmp_path):
    path = write(tmp_path / "t.jsonl", GOOD, b"{")
    with pytest.warns(UserWarning, match="line 2"):
        assert len(read_tasks(path, on_bad_line="skip")) == 1


def test_too_long_lines_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 200)
    path = write(tmp_path / "t.jsonl", GOOD, b"x" * 1000, row(id="b"), b"y" * 201)
    skipped = []
    tasks = read_tasks(path, on_bad_line="skip", report=skipped.append)
    assert [task.id for task in tasks] == ["a", "b"]
    assert [(bad.number, bad.problem) for bad in skipped] == [
        (2, "longer than 200 B"),
        (4, "longer than 200 B"),
    ]
    with pytest.raises(UsageError, match="longer than 200 B"):
        write_tasks([Task("a", "x" * 500, CheckerSpec("number"), 1)], path)


def test_files_without_tasks(tmp_path):
    path = tmp_path / "t.jsonl"
    with pytest.raises(UsageError, match="no such file"):
        read_tasks(path)
    path.write_bytes(b"\n")
    with pytest.raises(UsageError, match="holds no tasks: it is empty"):
        read_tasks(path)
    path.write_bytes(b"{\n{\n")
    with pytest.raises(UsageError, match="all 2 were skipped"):
        read_tasks(path, on_bad_line="skip", report=lambda bad: None)
    with pytest.raises(UsageError, match="cannot be read"):
        read_tasks(tmp_path)
    with pytest.raises(UsageError, match="on_bad_line"):
        read_tasks(path, on_bad_line="ignore")


@pytest.mark.parametrize(
    "task",
    [
        Task("a", "p", CheckerSpec("number"), "many"),
        Task("a", "p", CheckerSpec("number"), float("nan")),
        Task("a", "p", CheckerSpec("gone"), "1"),
        Task("a", "\ud800", CheckerSpec("number"), "1"),
        Task("a", "p", CheckerSpec("text"), object()),
        TASKS[0],  # its id is there already
    ],
)
def test_nothing_is_written_that_cannot_be_read(tmp_path, task):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(UsageError):
        write_tasks([TASKS[0], task], path)
    assert path.read_bytes() == b"old"


def test_unwritable_place(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        write_tasks(TASKS, tmp_path / "gone" / "t.jsonl")
