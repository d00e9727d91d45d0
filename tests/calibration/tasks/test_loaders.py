import csv
import gzip
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cospec.calibration.tasks.checkers import check
from cospec.calibration.tasks.jsonl import read_tasks, write_tasks
from cospec.calibration.tasks.loaders import BENCHMARKS, load_benchmark
from cospec.errors import MissingExtraError, UsageError


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def one(name, path, **settings):
    (task,) = load_benchmark(name, path, **settings)
    return task


def asked(task):
    (message,) = task.prompt
    assert message["role"] == "user"
    return message["content"]


def test_gsm8k(tmp_path):
    row = {"question": "Two pens at $3?", "answer": "2*3=<<2*3=6>>6\nAnd so on.\n#### 1,006"}
    task = one("gsm8k", jsonl(tmp_path / "test.jsonl", row))
    assert (task.id, task.answer, task.kind) == ("gsm8k-1", "1,006", "gsm8k")
    assert "Two pens at $3?" in asked(task)
    assert check(task, "Answer: $1006.")
    assert not check(task, "Answer: 6")


@pytest.mark.parametrize(
    "row",
    [
        {"input": "2+2 {x}?", "target": 4},
        {"Body": "Two and two.", "Question": "2+2 {x}?", "Answer": 4.0, "Type": "Add", "ID": "c-1"},
        {"sQuestion": "2+2 {x}?", "lSolutions": [4.0], "iIndex": 7},
        {"question": "2+2 {x}?", "final_ans": "4"},
        {"question": "2+2 {x}?", "answer": "it is\n#### 4"},
    ],
)
def test_arithmetic_under_any_key(tmp_path, row):
    as_list = tmp_path / "list.json"
    as_list.write_text(json.dumps([row], indent=1))
    for path in (jsonl(tmp_path / "x.jsonl", row), jsonl(tmp_path / "lines.json", row), as_list):
        task = one("svamp", path)
        assert "2+2 {x}?" in asked(task)
        assert ("Two and two. 2+2" in asked(task)) == ("Body" in row)
        assert check(task, "Answer: 4")
        assert not check(task, "Answer: 5")


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\ndef total(xs: List[int]) -> int:\n    '''Sum.'''\n",
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}


def test_humaneval(tmp_path):
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    task = one("humaneval", path)
    assert task.id == "HumanEval/0"
    assert "def total(xs" in asked(task)
    assert check(task, HUMANEVAL["canonical_solution"])
    assert check(task, f"```python\n{HUMANEVAL['prompt']}{HUMANEVAL['canonical_solution']}```")
    assert not check(task, "    return 0\n")


def mbpp(number, **changes):
    return {
        "task_id": number,
        "text": "Write a function to add.",
        "code": "def add(a, b):\r\n  return a + b",
        "test_setup_code": "import math",
        "test_list": ["assert math.isclose(add(1, 2), 3)", "assert add(2, 2) == 4"],
        **changes,
    }


def test_mbpp(tmp_path):
    task = one("mbpp", jsonl(tmp_path / "mbpp.jsonl", mbpp(11)))
    assert task.answer["entry_point"] == "add"
    assert "assert add(2, 2) == 4" in asked(task)
    assert check(task, "```python\ndef add(a, b):\n    return a + b\n```")
    assert not check(task, "```python\ndef add(a, b):\n    return 3\n```")
    sanitized = mbpp(2, prompt="Add.", test_imports=["import math"])
    del sanitized["text"], sanitized["test_setup_code"]
    assert check(one("mbpp", jsonl(tmp_path / "s.jsonl", sanitized)), "def add(a, b): return a + b")


def test_mbpp_splits(tmp_path):
    path = jsonl(tmp_path / "mbpp.jsonl", *(mbpp(n) for n in (2, 11, 510, 511, 601, 974)))
    assert [task.id for task in load_benchmark("mbpp", path, "test")] == ["mbpp-11", "mbpp-510"]
    assert len(load_benchmark("mbpp", path, "train")) == 2
    assert len(load_benchmark("mbpp", path)) == 6
    with pytest.raises(UsageError, match="no split 'dev'"):
        load_benchmark("mbpp", path, "dev")


def test_math(tmp_path):
    row = {
        "problem": "Half of $x$?",
        "solution": r"It is $\boxed{\frac{1}{2}}$.",
        "subject": "Algebra",
    }
    with_answer = {**row, "answer": r"\frac{1}{2}", "unique_id": "test/1.json"}
    for task in load_benchmark("math500", jsonl(tmp_path / "m.jsonl", row, with_answer)):
        assert task.kind == "Algebra"
        assert r"within \boxed{}." in asked(task)
        assert check(task, row["solution"])
        assert not check(task, r"\boxed{2}")


def test_triviaqa(tmp_path):
    original = {
        "Data": [
            {
                "QuestionId": "tc_1",
                "Question": "Who?",
                "Answer": {
                    "Value": "Lewis",
                    "Aliases": ["(Harry) Lewis"],
                    "NormalizedAliases": ["lewis"],
                },
            }
        ]
    }
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(original))
    task = one("triviaqa", path)
    assert task.id == "tc_1"
    assert check(task, "Answer: Harry Lewis.")
    assert not check(task, "Answer: Sinclair")
    hub = {
        "question_id": "q",
        "question": "Who?",
        "answer": {"value": "Lewis", "aliases": ["H Lewis"]},
    }
    assert check(one("triviaqa", jsonl(tmp_path / "hub.jsonl", hub)), "h. lewis")


def test_gpqa(tmp_path):
    path = tmp_path / "gpqa.csv"
    names = [
        "Question",
        "Correct Answer",
        *(f"Incorrect Answer {i}" for i in (1, 2, 3)),
        "Record ID",
    ]
    rows = [[f"Question {n}?\nMore", "right", "w1", "w2", "w3", f"rec{n}"] for n in range(40)]
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([names, *rows])
    tasks = load_benchmark("gpqa", path)
    assert tasks[0].id == "gpqa-rec0"
    assert {task.answer for task in tasks} == set("ABCD")  # the right one is not always the first
    for task in tasks:
        assert f"({task.answer}) right" in asked(task)
        assert check(task, f"Answer: {task.answer}")
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([names, *rows[5:]])
    assert load_benchmark("gpqa", path) == tasks[5:]  # the order does not depend on the neighbours


def test_questions(tmp_path):
    path = jsonl(
        tmp_path / "question.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {
            "question_id": 101,
            "category": "math",
            "turns": ["1?", "2?"],
            "reference": ["one", "two"],
        },
        {
            "question_id": 401,
            "category": "math_reasoning",
            "turns": ["2+2?"],
            "reference": ["#### 4"],
        },
        {"question_id": 481, "category": "rag", "turns": ["?"], "reference": [["a", "b"]]},
    )
    writing, math, reasoning, rag = load_benchmark("specbench", path)
    assert (writing.checker.name, asked(writing)) == ("judge", "Write.")
    assert writing.answer == {"question": "Write.", "reference": None}
    assert math.answer["reference"] == "one"
    assert rag.answer["reference"] == "a\nb"
    assert reasoning.checker.name == "number"
    assert check(reasoning, "Answer: 4")
    assert load_benchmark("mtbench", path)[0] == writing


def test_tasks_of_benchmarks_are_tasks_of_files(tmp_path):
    tasks = load_benchmark("humaneval", jsonl(tmp_path / "h.jsonl", HUMANEVAL))
    write_tasks(tasks, tmp_path / "tasks.jsonl")
    assert read_tasks(tmp_path / "tasks.jsonl") == tasks


GOOD = {"question": "2+2?", "answer": "#### 4"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "2+2?"}, "the key answer is missing"),
        ({"question": "2+2?", "answer": "4"}, "no '####'"),
        ({"question": "2+2?", "answer": "#### four"}, "not a number"),
        ({"question": 5, "answer": "#### 4"}, "a text was expected"),
        ({"question": None, "answer": "#### 4"}, "a text was expected"),
        ({"question": "2+2?", "answer": "#### 4", "more": "\ud800"}, "surrogate"),
    ],
)
def test_bad_rows(tmp_path, row, problem):
    path = jsonl(tmp_path / "g.jsonl", GOOD, row, {**GOOD, "question": "more"})
    with pytest.raises(UsageError, match="line 2: .*" + problem):
        load_benchmark("gsm8k", path)
    skipped = []
    tasks = load_benchmark("gsm8k", path, on_bad_line="skip", report=skipped.append)
    assert [task.id for task in tasks] == ["gsm8k-1", "gsm8k-3"]
    assert [bad.number for bad in skipped] == [2]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
@pytest.mark.parametrize(
    "row", [{}, {"question": []}, {"turns": []}, {"Answer": 1, "test_list": 3}]
)
def test_rows_of_another_form_never_crash(tmp_path, name, row):
    with pytest.raises(UsageError, match="line 1"):
        load_benchmark(name, jsonl(tmp_path / "x.jsonl", row))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.json", b"[1, 2", "not valid JSON"),
        ("x.json", b'{"a": 1,\n "b": 2}', "neither a list of objects"),
        ("x.json", b"[\n1]", "item 1: not a JSON object"),
        ("x.json", b"[" * 100_000, "not valid JSON"),
        ("x.csv", b"\xff\xfe,\n", "not a CSV file"),
        ("x.jsonl.gz", b"no gzip", "damaged"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:30], "damaged"),
        ("x.jsonl", b"", "it is empty"),
    ],
)
def test_damaged_files(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_benchmark("svamp", tmp_path / file)


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([GOOD]), tmp_path / "x.parquet")
    assert one("gsm8k", tmp_path / "x.parquet").answer == "4"
    (tmp_path / "y.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        load_benchmark("gsm8k", tmp_path / "y.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow") as caught:
        load_benchmark("gsm8k", tmp_path / "x.parquet")
    assert "cospec[hub]" in str(caught.value)


def test_splits_of_the_hub(monkeypatch):
    """Each benchmark asks for its data set, configuration and split, and reads the rows it gets."""
    asked = []

    def load_dataset(hub_id, config, *, split):
        asked.append((hub_id, config, split))
        return [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "2"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert [task.answer for task in load_benchmark("math500")] == ["1", "2"]
    assert asked == [("HuggingFaceH4/MATH-500", None, "test")]
    for name, split, expected in (
        ("gsm8k", "train", ("openai/gsm8k", "main", "train")),
        ("gpqa", None, ("Idavidrein/gpqa", "gpqa_diamond", "train")),
        ("triviaqa", None, ("mandarjoshi/trivia_qa", "rc.nocontext", "validation")),
        ("mbpp", "validation", ("google-research-datasets/mbpp", "full", "validation")),
    ):
        with pytest.raises(UsageError, match=rf"{expected[0]}, item 1"):  # not rows of its form
            load_benchmark(name, split=split)
        assert asked[-1] == expected


def test_rows_come_through_datasets_itself(tmp_path, monkeypatch):
    """The library, on a data set that is a folder here: on the hub it would be the same call."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        jsonl(tmp_path / "gsm8k" / f"{split}.jsonl", {**GOOD, "question": split})
    known = replace(BENCHMARKS["gsm8k"], hub_id=str(tmp_path / "gsm8k"), config=None)
    monkeypatch.setitem(BENCHMARKS, "gsm8k", known)
    for split in ("train", "test"):
        assert split in asked(one("gsm8k", None, split=split))


def test_without_the_hub_the_way_round_is_named(monkeypatch):
    def load_dataset(*args, **settings):
        raise ConnectionError("the hub is away")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UsageError, match=r"Cannot get gpqa .*the hub is away") as caught:
        load_benchmark("gpqa")
    assert "--tasks gpqa:PATH" in str(caught.value)
    assert "accept its terms" in str(caught.value)
    with pytest.raises(UsageError, match="specbench is not on the hub"):
        load_benchmark("specbench")
    with pytest.raises(UsageError, match="no split 'dev'; it has train, test"):
        load_benchmark("gsm8k", split="dev")
    with pytest.raises(UsageError, match="There are gsm8k"):
        load_benchmark("gsm9k")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets") as caught:
        load_benchmark("gsm8k")
    assert "cospec[hub]" in str(caught.value)


def test_table_is_consistent():
    for benchmark in BENCHMARKS.values():
        assert (benchmark.hub_id is None) == (not benchmark.splits)
        assert benchmark.hub_id is None or benchmark.hub_id.count("/") == 1


def test_half_a_surrogate_pair_in_a_json_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"question": "2+2 \\ud800?", "answer": "4"}]')
    with pytest.raises(UsageError, match=r"item 1.*surrogates not allowed"):
        load_benchmark("svamp", path)
