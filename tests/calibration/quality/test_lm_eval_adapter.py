"""The adapter for lm-evaluation-harness gives the items that its own model `hf` gives."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from arbiters import bundle_with_arbiter
from click.testing import CliRunner

pytest.importorskip("lm_eval", reason="needs lm-eval (extra eval)")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from cospec.calibration.quality import cli as bench
from cospec.calibration.quality import lm_eval_adapter
from cospec.calibration.quality.cli import main
from cospec.calibration.quality.lm_eval_adapter import CospecLM
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.errors import UsageError
from cospec.models import tiny_pair
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load

ITEMS = 8
TASKS = {
    "tiny_generate": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 64, do_sample: false}
metric_list: [{metric: exact_match}]
filter_list:
  - name: number
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)[^0-9]*$"}, {function: take_first}]
""",
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA: The answer is"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of the harness over the tiny pair's problems."""
    folder = tmp_path_factory.mktemp("lm-eval")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    rows = []
    for task in tiny_tasks("validation", ITEMS, seed=0):
        question = task.prompt if isinstance(task.prompt, str) else task.prompt[-1]["content"]
        answer = str(task.answer)
        rows.append(
            {
                "question": question,
                "answer": answer,
                "choices": [f" {answer}", f" {answer}7", " I do not know", "?"],
                "text": f"{question} The answer is {answer}. " * 12,
            }
        )
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}test_split: test\n{text}")
    return folder


def evaluate(model: Any, folder: Path, *tasks: str, **settings: Any) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=list(tasks or TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def tiny_pair_with_arbiter(
    tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    graph = tiny_pair.ARBITER / "model.onnx"
    return bundle_with_arbiter(tiny_pair_bundle, graph, tmp_path_factory.mktemp("own") / "tiny")


@pytest.fixture(scope="module")
def reference(folder: Path) -> HFLM:
    target = str(tiny_pair.ARBITER.with_name("target"))
    return HFLM(pretrained=target, dtype="float32", device="cpu", max_length=255)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("mode", ["strict", "target"])
def test_every_item_is_that_of_the_model_hf(tiny_pair_bundle, folder, reference, mode, chat):
    ours = CospecLM(engine_dir=tiny_pair_bundle, mode=mode, max_length=255)
    found, expected = (
        evaluate(model, folder, apply_chat_template=chat) for model in (ours, reference)
    )
    for task in TASKS:
        assert len(found["samples"][task]) == ITEMS
        pairs = zip(found["samples"][task], expected["samples"][task], strict=True)
        for sample, other in pairs:
            assert sample["arguments"] == other["arguments"]
            if task == "tiny_generate":
                assert sample["resps"] == other["resps"]
            else:
                for one, two in zip(flat(sample["resps"]), flat(other["resps"]), strict=True):
                    assert one == pytest.approx(two, rel=1e-4, abs=1e-3)
            for metric in sample["metrics"]:
                assert sample[metric] == pytest.approx(other[metric], rel=1e-4)
    right = [model["results"]["tiny_generate"]["exact_match,number"] for model in (found, expected)]
    assert right[0] == right[1] > (0.5 if chat else 0)
    assert found["config"]["seal"] == Bundle.open(tiny_pair_bundle).manifest.seal


def flat(value: Any) -> list[float]:
    """Numbers of nested lists; flags count as 0 and 1."""
    if isinstance(value, list | tuple):
        return [number for part in value for number in flat(part)]
    return [float(value)]


def test_collab_answers_as_cospec_bench_does(tiny_pair_with_arbiter, folder):
    model = CospecLM(engine_dir=tiny_pair_with_arbiter, mode="collab", threshold=0.1)
    found = evaluate(model, folder, "tiny_generate", apply_chat_template=True)
    session = load(tiny_pair_with_arbiter)
    for sample in found["samples"]["tiny_generate"]:
        prompt = [{"role": "user", "content": sample["doc"]["question"]}]
        options = {"max_tokens": 64, "mode": "collab", "threshold": 0.1}
        session.forget()
        assert sample["resps"] == [[session.generate(prompt, **options).text]]
    strict = CospecLM(engine_dir=tiny_pair_with_arbiter)
    other = evaluate(strict, folder, "tiny_generate", apply_chat_template=True)
    assert other["samples"]["tiny_generate"] != found["samples"]["tiny_generate"]


def test_log_likelihoods_are_the_targets_in_every_mode_but_draft(tiny_pair_with_arbiter, folder):
    found = {
        mode: flat(
            [
                sample["resps"]
                for sample in evaluate(
                    CospecLM(tiny_pair_with_arbiter, mode), folder, "tiny_choice"
                )["samples"]["tiny_choice"]
            ]
        )
        for mode in ("target", "collab", "draft")
    }
    assert found["collab"] == found["target"] != found["draft"]


def request(text: str, **arguments: Any) -> Instance:
    return Instance("generate_until", {}, (text, arguments), 0)


def test_texts_end_at_a_stop_text_and_at_the_limit(tiny_pair_bundle):
    model = CospecLM(engine_dir=tiny_pair_bundle, max_gen_toks=5)
    question = "Q: What is 12 + 30?\nA:"
    whole, short, cut = model.generate_until(
        [
            request(question, max_gen_toks=40),
            request(question, until=[]),
            request(question, until="=", max_tokens=40),
        ]
    )
    assert whole.startswith(short)
    assert 0 < len(short) < len(whole)
    assert cut == whole.split("=")[0]


def test_samples_of_one_prompt_differ_and_a_seed_repeats_them(tiny_pair_bundle):
    arguments = {"do_sample": True, "temperature": 1.5, "top_p": 0.95, "max_gen_toks": 24}
    requests = [request("Q: What is 12 + 30?\nA:", **arguments) for _ in range(3)]
    first = CospecLM(engine_dir=tiny_pair_bundle).generate_until(requests)
    assert len(set(first)) == 3
    assert CospecLM(engine_dir=tiny_pair_bundle).generate_until(requests) == first
    assert CospecLM(engine_dir=tiny_pair_bundle, seed=1).generate_until(requests) != first


def test_a_long_context_loses_its_beginning(tiny_pair_bundle):
    model = CospecLM(engine_dir=tiny_pair_bundle, max_length=40)
    end = "Q: What is 12 + 30?\nA:"
    texts = model.generate_until(
        [request(word * 300 + end, max_gen_toks=8) for word in ("x ", "x y ")]
    )
    assert texts[0]
    job, _ = model._generate_job("x " * 300 + end, {"max_gen_toks": 8}, 0)
    assert len(job.prompt) == 32
    assert model._codec.decode(job.prompt).endswith(end)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "{'num_beams': 4} are not supported"),
        ({"max_gen_toks": 10_000}, "max_gen_toks is 10000, but this bundle holds"),
        ({"do_sample": True, "temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(tiny_pair_bundle, arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        CospecLM(engine_dir=tiny_pair_bundle).generate_until([request("Q:", **arguments)])


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("collab", "this bundle has no arbiter"),
        ("sample:0.7,1", "cannot be evaluated"),
        ("fast", "unknown rule 'fast'"),
    ],
)
def test_modes_that_cannot_be_run_are_refused(tiny_pair_bundle, mode, message):
    with pytest.raises(UsageError, match=message):
        CospecLM(engine_dir=tiny_pair_bundle, mode=mode)


def test_the_command_continues_from_its_cache(tiny_pair_bundle, folder, tmp_path, monkeypatch):
    cache = tmp_path / "answers"
    words = ["lm-eval", "--model_args", f"engine_dir={tiny_pair_bundle}", "--include_path", folder]
    words += ["--tasks", "tiny_generate,tiny_choice", "--use_cache", cache, "--limit", 3]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "|tiny_generate|" in done.stdout

    jobs: list[object] = []
    answer = lm_eval_adapter.run_job
    monkeypatch.setattr(
        lm_eval_adapter, "run_job", lambda runner, job: jobs.append(job) or answer(runner, job)
    )

    def again(mode: str) -> dict[str, Any]:
        model, names = CospecLM(tiny_pair_bundle, mode), ("tiny_generate", "tiny_choice")
        return evaluate(model, folder, *names, use_cache=str(cache), limit=4)

    assert len(again("strict")["samples"]["tiny_choice"]) == 4
    assert len(jobs) == 2, "the fourth item of each task is new"
    with pytest.raises(UsageError, match="answers of another bundle or mode"):
        again("draft")


def test_the_command_has_all_options_of_the_harness(monkeypatch):
    done = CliRunner().invoke(main, ["lm-eval", "run", "--help"])
    assert done.exit_code == 0
    for option in ("--num_fewshot", "--log_samples", "--gen_kwargs", "--use_cache"):
        assert option in done.stdout
    assert "engine_dir" in CliRunner().invoke(main, ["lm-eval", "--help"]).stdout
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    refused = CliRunner().invoke(main, ["lm-eval", "--tasks", "x"])
    assert refused.exit_code == 4
    assert "cospec[eval]" in refused.stderr
