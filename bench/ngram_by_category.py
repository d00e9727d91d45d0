"""What n-gram lookup gives on questions of several kinds: speed-up by category, output compared.

Each question is answered by plain decoding and with drafts that are looked up in the text so far, in
turns, by the same session; ratios are within a question. Questions are lines of JSON with `category`
and `turns` (Spec-Bench's form); the first turn is asked.

    .venv/bin/python -m bench.ngram_by_category --engine-dir models/smollm2 --questions question.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
from tqdm import tqdm

from cospec.calibration.tables import text_table
from cospec.runtime.decoding.session import DraftLength, Session, load
from cospec.runtime.engines.onnxruntime import OrtOptions


@dataclass(frozen=True)
class Answer:
    """One question, answered both ways.

    Attributes:
        speedup: seconds of plain decoding over seconds with drafts.
        tokens_per_pass: of the target, with drafts.
        is_equal: whether both outputs are the same tokens.
    """

    speedup: float
    tokens_per_pass: float
    is_equal: bool


def answer(session: Session, question: str, tokens: int, length: DraftLength, first: int) -> Answer:
    """Answer one question with and without drafts; `first` says which way goes first."""
    found: dict[DraftLength, tuple[float, Any]] = {}
    lengths: list[DraftLength] = [0, length]
    for k in lengths[:: 1 if first % 2 == 0 else -1]:
        session.forget()  # the prompt is read anew, by both
        started = perf_counter()
        done = session.generate(
            [{"role": "user", "content": question}],
            max_tokens=tokens,
            num_draft_tokens=k,
            greedy=True,
        )
        found[k] = (perf_counter() - started, done)
    (plain_seconds, plain), (seconds, drafted) = found[0], found[length]
    return Answer(
        plain_seconds / seconds,
        len(drafted.tokens) / drafted.stats.num_target_passes,
        drafted.tokens == plain.tokens,
    )


@click.command()
@click.option("--engine-dir", type=click.Path(path_type=Path), required=True)
@click.option("--questions", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--each", default=5, show_default=True, help="Questions of each category.")
@click.option("--tokens", default=64, show_default=True, help="Of an answer at most.")
@click.option("--prompt-tokens", default=512, show_default=True, help="Longer ones are left out.")
@click.option("--num-draft-tokens", default="auto", show_default=True, help="A number, or auto.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def main(
    engine_dir: Path,
    questions: Path,
    each: int,
    tokens: int,
    prompt_tokens: int,
    num_draft_tokens: str,
    threads: int,
    as_json: bool,
) -> None:
    """Print speed-up by category, and how many outputs were equal."""
    session = load(engine_dir, drafter="ngram", options=OrtOptions(threads=threads))
    length: DraftLength = "auto" if num_draft_tokens == "auto" else int(num_draft_tokens)
    asked: dict[str, list[str]] = defaultdict(list)
    for line in questions.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        kept, text = asked[item["category"]], item["turns"][0]
        if len(kept) == each:
            continue
        if len(session.encode([{"role": "user", "content": text}])) <= prompt_tokens:
            kept.append(text)
    answers: dict[str, list[Answer]] = defaultdict(list)
    todo = [(category, text) for category, texts in asked.items() for text in texts]
    session.generate("warm up", max_tokens=tokens, num_draft_tokens=length)
    for i, (category, text) in enumerate(tqdm(todo, disable=not sys.stderr.isatty())):
        answers[category].append(answer(session, text, tokens, length, i))
    figures = {
        category: {
            "questions": len(found),
            "speedup": median(a.speedup for a in found),
            "tokens_per_pass": median(a.tokens_per_pass for a in found),
            "equal": sum(a.is_equal for a in found),
        }
        for category, found in answers.items()
        if found
    }
    if as_json:
        click.echo(json.dumps({"tokens": tokens, "threads": threads, "categories": figures}))
        return
    rows = [["category", "questions", "speed-up", "tokens/pass", "equal"]]
    for name, row in figures.items():
        numbers = f"{row['speedup']:.2f}", f"{row['tokens_per_pass']:.2f}", str(row["equal"])
        rows.append([name, str(row["questions"]), *numbers])
    click.echo("\n".join(text_table(rows, right=range(1, 5))))


if __name__ == "__main__":
    main()
