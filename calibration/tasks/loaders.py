"""Load a benchmark from a local file, or from the Hugging Face hub through `datasets`.

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

A local file is used whole; of MBPP's single file `split` chooses the items by their published ids.
Local files are read by rows.py and not by `datasets`, which names no line, gives up a whole file for
one bad line, turns texts into numbers where others in the column are ("4" into 4), fills missing keys
with None, and copies each file into its cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import MissingExtraError, UsageError
from . import benchmarks
from .bad_lines import BadLines, OnBadLine, Report
from .checkers import problem_with
from .item import Task, task_to_row
from .rows import Row, read_rows


@dataclass(frozen=True)
class Benchmark:
    """Where one benchmark comes from.

    Attributes:
        to_task: from a row and its number to a task.
        hub_id: the data set on the hub; None if there is none.
        config: the data set's configuration on the hub.
        splits: the splits by the names that we use, and what the hub calls them.
        gated: the hub hands it out only after its terms were accepted.
        ids: of a local file that holds all splits, the `task_id`s of each (first, last).
    """

    to_task: Callable[[Row, int], Task]
    hub_id: str | None = None
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False
    ids: Mapping[str, tuple[int, int]] = field(default_factory=dict)


_TEST = {"test": "test"}
_TRAIN_TEST = {"train": "train", **_TEST}
_MBPP_IDS = {"test": (11, 510), "validation": (511, 600), "train": (601, 974)}

BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(benchmarks.gsm8k, "openai/gsm8k", "main", _TRAIN_TEST),
    "svamp": Benchmark(benchmarks.arithmetic, "ChilleD/SVAMP", None, _TRAIN_TEST),
    "multiarith": Benchmark(benchmarks.arithmetic, "ChilleD/MultiArith", None, _TRAIN_TEST),
    "humaneval": Benchmark(benchmarks.humaneval, "openai/openai_humaneval", None, _TEST),
    "mbpp": Benchmark(
        benchmarks.mbpp,
        "google-research-datasets/mbpp",
        "full",
        {**_TRAIN_TEST, "validation": "validation"},
        ids=_MBPP_IDS,
    ),
    "math500": Benchmark(benchmarks.math500, "HuggingFaceH4/MATH-500", None, _TEST),
    "triviaqa": Benchmark(
        benchmarks.triviaqa,
        "mandarjoshi/trivia_qa",
        "rc.nocontext",
        {"validation": "validation"},
    ),
    "gpqa": Benchmark(
        benchmarks.gpqa, "Idavidrein/gpqa", "gpqa_diamond", {"test": "train"}, gated=True
    ),
    "mtbench": Benchmark(
        benchmarks.questions, "HuggingFaceH4/mt_bench_prompts", None, {"test": "train"}
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
        source: a local file; None loads from the hub (cached in HF_HOME).
        split: "test" and the like. Default: "test" or the only split of the hub, and all of a local
            file.
        on_bad_line: "stop" raises at the first row that cannot be used; "skip" leaves them out.
        report: called with each `BadLine` that is skipped. Default: a Python warning.

    Raises:
        UsageError: no such benchmark or split, or the file cannot be had, read or used.
        MissingExtraError: the hub is needed and `datasets` is not installed.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise UsageError(
            f"There is no benchmark {name!r}.", hint=f"There are {', '.join(BENCHMARKS)}."
        )
    keep: Callable[[Row], bool] = lambda row: True  # noqa: E731
    rows: Iterable[tuple[int, str, Row]]
    if source is None:
        rows = _hub_rows(name, benchmark, split)
        bad = BadLines(Path(benchmark.hub_id or name), on_bad_line, report)
    else:
        keep = _split_filter(name, benchmark, split)
        path = Path(source).expanduser()
        bad = BadLines(path, on_bad_line, report)
        rows = read_rows(path, bad)
    tasks: dict[str, Task] = {}
    for number, unit, row in rows:
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


def _split_filter(name: str, benchmark: Benchmark, split: str | None) -> Callable[[Row], bool]:
    if split is None or not benchmark.ids:
        return lambda row: True
    first, last = benchmark.ids[_known(name, benchmark.ids, split)]
    return lambda row: isinstance(row.get("task_id"), int) and first <= row["task_id"] <= last


def _known(name: str, splits: Iterable[str], split: str) -> str:
    if split not in splits:
        raise UsageError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
    return split


def _hub_rows(name: str, benchmark: Benchmark, split: str | None) -> Iterable[tuple[int, str, Row]]:
    """The rows of a split from the hub, or from the cache of an earlier download."""
    if benchmark.hub_id is None:
        raise UsageError(f"{name} is not on the hub.", hint=_hint(name, benchmark))
    split = split or ("test" if "test" in benchmark.splits else next(iter(benchmark.splits)))
    theirs = benchmark.splits[_known(name, benchmark.splits, split)]
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", "Downloading a benchmark") from error
    try:
        rows = load_dataset(benchmark.hub_id, benchmark.config, split=theirs)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UsageError(
            f"Cannot get {name} ({split} of {benchmark.hub_id}) from the hub: {reason}",
            hint=_hint(name, benchmark),
        ) from error
    return ((number, "item", dict(row)) for number, row in enumerate(rows, 1))


def _hint(name: str, benchmark: Benchmark) -> str:
    gate = ""
    if benchmark.gated:
        gate = (
            f"This data set is gated: accept its terms at "
            f"https://huggingface.co/datasets/{benchmark.hub_id}, then `hf auth login`. "
        )
    return f"{gate}A local copy does as well: --tasks {name}:PATH (see docs/tasks.md)."
