import json
import subprocess
import sys

import pytest

from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.jsonl import write_tasks
from cospec.calibration.tasks.resolve import TINY_ITEMS, label_of, resolve_tasks
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.errors import UsageError
from cospec.models.tiny_pair.tasks import KINDS

TASKS = [Task(str(n), "p", CheckerSpec("number"), n, kind=f"k{n % 2}") for n in range(20)]


@pytest.fixture
def path(tmp_path):
    write_tasks(TASKS, tmp_path / "tasks.jsonl")
    return tmp_path / "tasks.jsonl"


def test_task_file(path):
    assert resolve_tasks(str(path)) == TASKS


def test_items_are_a_seeded_sample(path):
    five = resolve_tasks(str(path), items=5)
    assert len({task.id for task in five}) == 5
    assert five == resolve_tasks(str(path), items=5) == resolve_tasks(str(path), items=9)[:5]
    assert five != TASKS[:5]
    assert five != resolve_tasks(str(path), items=5, seed=1)
    assert len(resolve_tasks(str(path), items=100)) == 20


def test_kinds(path):
    tasks = resolve_tasks(str(path), kinds=["k1"], items=3)
    assert {task.kind for task in tasks} == {"k1"}
    with pytest.raises(UsageError, match="its kinds: k0, k1"):
        resolve_tasks(str(path), kinds=["k2"])


def test_tiny():
    assert len(resolve_tasks("tiny:test")) == TINY_ITEMS
    tasks = resolve_tasks("tiny:validation", items=40, seed=2)
    assert tasks == tiny_tasks("validation", 40, 2)
    assert tasks[:20] == tiny_tasks("validation", 20, 2)
    assert {task.kind for task in tasks} == set(KINDS)
    assert {task.kind for task in resolve_tasks("tiny:train", items=8, kinds=["mul"])} == {"mul"}


def test_tiny_splits_do_not_meet():
    ids = [
        {task.id.split("/", 2)[2] for task in tiny_tasks(split, 400, 0)}
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 1200


def test_benchmark_of_a_local_file(tmp_path, monkeypatch):
    row = {"question": "2+2?", "answer": "#### 4"}
    (tmp_path / "g.jsonl").write_text(json.dumps(row))
    assert resolve_tasks(f"gsm8k:{tmp_path / 'g.jsonl'}")[0].answer == "4"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test").write_text(json.dumps(row))
    assert resolve_tasks("gsm8k:test")[0].answer == "4"  # a file wins over a split


@pytest.mark.parametrize("spec", ["gsm8k", "gsm8k:", "gsm8k:test", "gsm8k:train"])
def test_benchmark_of_the_hub(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="Cannot get gsm8k"):  # the suite is offline
        resolve_tasks(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny", "tiny:train, tiny:validation, tiny:test"),
        ("tiny:dev", "names no tasks"),
        ("gsm9k:x", "Did you mean gsm8k"),
        ("gone.jsonl", "no such task file"),
        ("", "no such task file"),
        ("gsm8k:gone.jsonl", "gone.jsonl: no such file"),
    ],
)
def test_nothing_of_that_name(spec, message):
    with pytest.raises(UsageError, match=message):
        resolve_tasks(spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 0}, "0 items"),
        ({"items": -1}, "-1 items"),
        ({"kinds": ["word", "poem"]}, "poem"),
        ({"kinds": []}, "kinds"),
        ({"items": 5000, "kinds": ["mul"]}, "no more of them"),
    ],
)
def test_impossible_wishes(arguments, message):
    with pytest.raises(UsageError, match=message):
        resolve_tasks("tiny:test", **arguments)


def test_tiny_tasks_refuse_nonsense():
    with pytest.raises(UsageError, match="no split 'dev'"):
        tiny_tasks("dev", 5, 0)
    with pytest.raises(UsageError, match="0 tiny tasks"):
        tiny_tasks("test", 0, 0)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("tiny:train", "tiny:train"),
        ("gsm8k", "gsm8k"),
        ("gsm8k:test", "gsm8k:test"),
        ("gsm8k:/home/me/train.jsonl", "gsm8k:train.jsonl"),
        ("/home/me/tasks.jsonl", "tasks.jsonl"),
        ("mine:v2/tasks.jsonl", "tasks.jsonl"),
    ],
)
def test_a_certificate_names_no_folders(spec, label):
    assert label_of(spec) == label


def test_bad_lines_reach_the_caller(tmp_path):
    path = tmp_path / "t.jsonl"
    write_tasks(TASKS[:2], path)
    path.write_bytes(path.read_bytes() + b"{cut")
    with pytest.raises(UsageError, match="line 3"):
        resolve_tasks(str(path))
    skipped = []
    assert resolve_tasks(str(path), on_bad_line="skip", report=skipped.append) == TASKS[:2]
    assert skipped[0].number == 3


def test_import_is_light():
    code = (
        "import sys, cospec.calibration.tasks\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'huggingface_hub', 'numpy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
