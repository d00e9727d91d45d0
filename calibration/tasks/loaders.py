"""Load a benchmark from a local file, or from the Hugging Face hub.

| name | file of the original | checker |
|---|---|---|
| gsm8k | train.jsonl, test.jsonl: question, answer with `####` | number |
| svamp, multiarith | .json or .jsonl: question/input/Body+Question, answer/target/Answer/... | number |
| humaneval | HumanEval.jsonl(.gz): prompt, test, entry_point | python |
| mbpp | mbpp.jsonl: text, code, test_list | python |
| math500 | test.jsonl: problem, answer | math |
| triviaqa | .json: Data[].Question, Answer.Aliases | text |
| gpqa | gpqa_diamond.csv: Question, Correct Answer, Incorrect Answer 1 to 3 | choice |
| mtbench, specbench | question.jsonl: turns, category, reference | judge; number |

A local file is whole whatever the split; `split` chooses the hub's file, and of MBPP's one file the
items by their published ids.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError, UsageError
from . import benchmarks
from .bad_lines import BadLines, OnBadLine, Report
from .checkers import problem_with
from .item import Task, task_to_row
from .rows import read_rows

HUB_TIMEOUT_S = 5.0
"""How long the hub may take for its first answer before it counts as unreachable."""


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is had.

    Attributes:
        to_task: from a row and its number to a task.
        hub_id: the data set on the hub; None where there is none in a form that is read here.
        files: the hub's file of each split.
        gated: the hub hands it out only after its terms were accepted.
        splits: of a file that holds all splits, the `task_id`s of each (first, last).
    """

    to_task: Callable[[Mapping[str, Any], int], Task]
    hub_id: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False
    splits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


_PARQUET = "{}-00000-of-00001.parquet"
_TRAIN_TEST_JSON = {"train": "train.json", "test": "test.json"}


def _parquet_files(folder: str, *splits: str) -> dict[str, str]:
    return {split: f"{folder}/{_PARQUET.format(split)}" for split in splits}


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(benchmarks.gsm8k, "openai/gsm8k", _parquet_files("main", "train", "test")),
    "svamp": Benchmark(benchmarks.arithmetic, "ChilleD/SVAMP", _TRAIN_TEST_JSON),
    "multiarith": Benchmark(benchmarks.arithmetic, "ChilleD/MultiArith", _TRAIN_TEST_JSON),
    "humaneval": Benchmark(
        benchmarks.humaneval, "openai/openai_humaneval", _parquet_files("openai_humaneval", "test")
    ),
    "mbpp": Benchmark(
        benchmarks.mbpp,
        "google-research-datasets/mbpp",
        _parquet_files("full", "train", "validation", "test"),
        splits={"test": (11, 510), "validation": (511, 600), "train": (601, 974)},
    ),
    "math500": Benchmark(benchmarks.math500, "HuggingFaceH4/MATH-500", {"test": "test.jsonl"}),
    "triviaqa": Benchmark(
        benchmarks.triviaqa,
        "mandarjoshi/trivia_qa",
        _parquet_files("rc.nocontext", "validation"),
    ),
    "gpqa": Benchmark(benchmarks.gpqa, "Idavidrein/gpqa", {"test": "gpqa_diamond.csv"}, gated=True),
    "mtbench": Benchmark(
        benchmarks.questions, "HuggingFaceH4/mt_bench_prompts", {"test": "raw/question.jsonl"}
    ),
    "specbench": Benchmark(benchmarks.questions),
}


def load_benchmark(
    name: str,
    source: str | Path | None = None,
    split: str | None = None,
    *,
    on_bad_line: OnBadLine = "stop",
    report: Report | None = None,
) -> list[Task]:
    """All tasks of a benchmark, in the order of its file.

    Args:
        name: a key of `BENCHMARKS`.
        source: a local file; None downloads from the hub (into its cache, HF_HOME).
        split: "test" and the like; None is "test", or the only split that the hub has; of a
            local file None is the whole.
        on_bad_line: "stop" raises at the first row that cannot be used; "skip" leaves them out.
        report: called with each `BadLine` that is left out; a Python warning each if None.

    Raises:
        UsageError: no such benchmark or split, or the file cannot be had, read or used.
        MissingExtraError: the hub is needed and huggingface_hub is not installed.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise UsageError(
            f"There is no benchmark {name!r}.", hint=f"There are {', '.join(BENCHMARKS)}."
        )
    if source is None:
        path = _download(name, benchmark, split)
        split = None
    else:
        path = Path(source).expanduser()
    keep = _split_filter(name, benchmark, split)
    bad = BadLines(path, on_bad_line, report)
    tasks: dict[str, Task] = {}
    for number, unit, row in read_rows(path, bad):
        if not keep(row):
            continue
        try:
            task = benchmark.to_task(row, number)
            # As in task files, no text may hold half a surrogate pair: no tokenizer takes it.
            json.dumps(task_to_row(task), ensure_ascii=False).encode()
            problem = problem_with(task)
        except KeyError as error:
            problem = f"the key {error.args[0]} is missing" if error.args else "a key is missing"
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            problem = f"not of the form of {name} ({str(error)[:200]})"
        if problem is None and task.id in tasks:
            problem = f"the id {task.id!a} occurs twice"
        if problem is None:
            tasks[task.id] = task
        else:
            bad.found(number, problem, unit)
    bad.require_some(len(tasks))
    return list(tasks.values())


def _split_filter(
    name: str, benchmark: Benchmark, split: str | None
) -> Callable[[Mapping[str, Any]], bool]:
    if split is None or not benchmark.splits:
        return lambda row: True
    if split not in benchmark.splits:
        raise UsageError(f"{name} has no split {split!r}; it has {', '.join(benchmark.splits)}.")
    first, last = benchmark.splits[split]
    return lambda row: isinstance(row.get("task_id"), int) and first <= row["task_id"] <= last


def _download(name: str, benchmark: Benchmark, split: str | None) -> Path:
    """The local path of the hub's file of a split."""
    if benchmark.hub_id is None:
        raise UsageError(f"{name} is not on the hub.", hint=_hint(name, benchmark))
    if split is None:
        split = "test" if "test" in benchmark.files else next(iter(benchmark.files))
    if split not in benchmark.files:
        raise UsageError(f"{name} has no split {split!r}; it has {', '.join(benchmark.files)}.")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "export", "Downloading a benchmark") from error
    file = benchmark.files[split]
    try:
        return _from_hub(benchmark.hub_id, file)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UsageError(
            f"Cannot get {name} ({file} of {benchmark.hub_id}) from the hub: {reason}",
            hint=_hint(name, benchmark),
        ) from error


def _from_hub(hub_id: str, file: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        # Asked only for its timeout: a download from a silent hub is tried again for long.
        HfApi().dataset_info(hub_id, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - raised below, unless the cache makes up for it
        trouble = error
    else:
        return Path(hf_hub_download(hub_id, file, repo_type="dataset"))
    with contextlib.suppress(OSError):
        return Path(hf_hub_download(hub_id, file, repo_type="dataset", local_files_only=True))
    raise trouble


def _hint(name: str, benchmark: Benchmark) -> str:
    gate = ""
    if benchmark.gated:
        gate = (
            f"This data set is gated: accept its terms at "
            f"https://huggingface.co/datasets/{benchmark.hub_id}, then `hf auth login`. "
        )
    return f"{gate}A local copy does as well: --tasks {name}:PATH (the forms are in loaders.py)."
