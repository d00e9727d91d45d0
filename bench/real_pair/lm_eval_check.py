"""Whether lm-evaluation-harness and `cospec-bench quality` find the same answers right, item by item.

    python -m bench.real_pair.lm_eval_check --engine-dir bundles/specialist --tasks test.jsonl \
      --arbiter bench/real_pair/arbiters/any_steps --results bench/real_pair/journals/test.jsonl

The harness makes the prompts, runs our adapter and collects the texts; both sides use one checker.
Answers that the journal has are not generated again for `quality`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cospec.calibration.quality.measurement import run_modes
from cospec.calibration.tasks.checkers import check
from cospec.calibration.tasks.item import Task
from cospec.calibration.tasks.resolve import resolve_tasks
from cospec.runtime.cli.common import CospecCommand

if TYPE_CHECKING:
    from lm_eval.api.model import LM

NAME = "short_working"
HARNESS_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: [], max_gen_toks: {max_tokens}, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@click.command(cls=CospecCommand)
@click.option("--engine-dir", type=click.Path(path_type=Path), required=True, help="A bundle.")
@click.option("--tasks", "file", required=True, help="Task file of `word_problems`.")
@click.option("--items", type=int, default=200, show_default=True, help="Number of items.")
@click.option("--mode", default="collab", show_default=True, help="Mode to compare.")
@click.option("--arbiter", type=click.Path(path_type=Path), help="An arbiter of the mode collab.")
@click.option("--num-draft-tokens", type=int, default=3, show_default=True, help="Per round.")
@click.option("--max-tokens", type=int, default=110, show_default=True, help="Longest answer.")
@click.option("--processes", type=int, default=2, show_default=True, help="Worker processes.")
@click.option("--results", type=click.Path(path_type=Path), help="Journal of `quality`.")
def main(
    engine_dir: Path,
    file: str,
    items: int,
    mode: str,
    arbiter: Path | None,
    num_draft_tokens: int,
    max_tokens: int,
    processes: int,
    results: Path | None,
) -> None:
    """Compare lm-evaluation-harness with cospec-bench quality, item by item."""
    tasks = resolve_tasks(file, items=items, seed=0)
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read at the import
    from cospec.calibration.quality.lm_eval_adapter import CospecLM

    model = CospecLM(
        engine_dir,
        mode=mode,
        arbiter=arbiter,
        num_draft_tokens=num_draft_tokens,
        max_gen_toks=max_tokens,
        processes=processes,
    )
    config = replace(model.config, max_tokens=max_tokens)
    answers = run_modes(config, tasks, [model.mode], results)[model.mode.name]
    ours = [answer.correct for answer in answers]
    texts = texts_of_harness(model, tasks, max_tokens)
    theirs = [check(task, text) for task, text in zip(tasks, texts, strict=True)]
    differ = [task.id for task, a, b in zip(tasks, ours, theirs, strict=True) if a != b]
    click.echo(f"{len(tasks)} items, right: quality {sum(ours)}, lm-eval {sum(theirs)}")
    click.echo(f"different: {', '.join(differ) or 'none'}")
    sys.exit(bool(differ))


def texts_of_harness(model: LM, tasks: Sequence[Task], max_tokens: int) -> list[str]:
    """Return what the harness collects for each task.

    Args:
        model: answers.
        tasks: conversations of the same instruction and one question each.
        max_tokens: longest answer.
    """
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    conversations = [
        [turn["content"] for turn in task.prompt if isinstance(turn, dict)] for task in tasks
    ]
    (instruction,) = {turns[0] for turns in conversations}
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        rows = [{"question": turns[1], "answer": ""} for turns in conversations]
        data = Path(folder, "questions.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        text = HARNESS_TASK.format(name=NAME, data=data, max_tokens=max_tokens)
        Path(folder, f"{NAME}.yaml").write_text(text, "utf-8")
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[NAME],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=True,
            system_instruction=instruction,
            log_samples=True,
        )
    samples = {sample["doc_id"]: sample["resps"][0][0] for sample in found["samples"][NAME]}
    return [samples[i] for i in range(len(tasks))]


if __name__ == "__main__":
    main()
