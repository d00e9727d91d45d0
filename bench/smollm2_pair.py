"""A draft for SmolLM2-135M-Instruct: some of its own layers, distilled briefly on its own answers.

The pair is there to show the commands on real models of one vocabulary, not to be a good pair: minutes
of distillation on one core. The steps, each measured:

1. The target answers the prompts greedily. Answers are kept in the output folder; a run that was
   stopped goes on from them.
2. Of a few subsets of its layers, the one that agrees best with those answers becomes the draft
   (embedding, head and last norm are the target's).
3. The draft's layers are trained towards the target's distribution at every token of the answers
   (Kullback-Leibler divergence, teacher-forced; Hinton et al., 2015). Embedding and head stay as they
   are.

Agreement is the share of answer tokens that the draft, given all before them, would have chosen too.

    .venv/bin/python -m bench.smollm2_pair --gguf SmolLM2-135M-Instruct.Q4_1.gguf \
        --train gsm8k:train.jsonl --output .cache/smollm2-draft
    .venv/bin/cospec-export --target SmolLM2-135M-Instruct.Q4_1.gguf \
        --draft .cache/smollm2-draft/draft --output models/smollm2-pair
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from cospec.calibration.quality.worker_pool import Journal, digest
from cospec.calibration.tasks import Task, resolve_tasks
from cospec.models.checkpoint import Checkpoint, load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.models.vocabulary import tokenizer_json
from cospec.runtime.text.codec import TextCodec

from .distillation import (
    Recipe,
    Row,
    agreement,
    answer_states,
    cut,
    distil,
    shortened,
    subsets,
)

HELD_OUT = 16
"""Answers that are kept out of training: agreement is measured on them, and layers are chosen."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def greedy_answers(
    module: Any, prompts: Sequence[list[int]], eos: Sequence[int], recipe: Recipe
) -> list[Row]:
    """The target's greedy answers, in batches of prompts of any length; each ends with its EOS."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), width), eos[0])
    mask = torch.zeros_like(tokens)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    out = module.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=recipe.answer_tokens,
        do_sample=False,
        eos_token_id=list(eos),
        pad_token_id=eos[0],
    )
    rows = []
    for prompt, answer in zip(prompts, out[:, width:].tolist(), strict=True):
        ends = [i for i, token in enumerate(answer) if token in eos]
        rows.append(Row(prompt, answer[: ends[0] + 1] if ends else answer))
    return rows


def answered(
    module: Any, checkpoint: Checkpoint, tasks: Sequence[Task], recipe: Recipe, folder: Path
) -> list[Row]:
    """Answer every task, but for those whose answers are in the folder already."""
    codec = TextCodec(folder / "tokenizer.json", folder / "chat_template.jinja")
    prompts = {}
    for task in tasks:
        prompt = task.prompt
        ids = codec.encode(prompt) if isinstance(prompt, str) else codec.encode_chat(prompt)
        facts = f"{checkpoint.path.name} {checkpoint.parameters} {recipe.answer_tokens} {ids}"
        prompts[digest(facts)] = ids
    journal = Journal(folder.parent / "answers.jsonl")
    done = {key: Row(**record) for key, record in journal.read().items() if key in prompts}
    # Prompts of like length in one batch: less padding.
    missing = sorted((key for key in prompts if key not in done), key=lambda k: len(prompts[k]))
    with journal.appending() as write, tqdm(total=len(missing), desc="answering") as bar:
        for some in cut(missing, recipe.batch):
            rows = greedy_answers(
                module, [prompts[key] for key in some], checkpoint.eos_ids, recipe
            )
            for key, row in zip(some, rows, strict=True):
                done[key] = row
                write(key, asdict(row))
                bar.update()
    return [done[key] for key in prompts]


def make_draft(gguf: str, train: str, output: Path, recipe: Recipe) -> dict[str, Any]:
    """Make the draft, write it to `output/draft`, and return what was measured."""
    started = time.monotonic()
    checkpoint = open_checkpoint(resolve(gguf))
    target = load_module(checkpoint, torch.float32, attention="sdpa")
    folder = output / "draft"
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(checkpoint, folder)
    tasks = resolve_tasks(train, items=recipe.items, seed=recipe.seed)
    if len(tasks) <= HELD_OUT:
        raise click.ClickException(f"{len(tasks)} prompts; more than {HELD_OUT} are needed")
    rows = answered(target, checkpoint, tasks, recipe, folder)
    held, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    pad = checkpoint.eos_ids[0]
    answered_s = time.monotonic() - started

    tried = {}
    for name, layers in subsets(target.config.num_hidden_layers, recipe.layers).items():
        short = shortened(target, layers)
        tried[name] = (agreement(short, held, recipe.batch, pad), layers)
    best = max(tried, key=lambda name: tried[name][0])
    before, layers = tried[best]
    draft = shortened(target, layers)
    with torch.no_grad():
        pieces = tqdm(cut(rows, recipe.batch), "target's states", unit="batch")
        states = torch.cat([answer_states(target, some, pad) for some in pieces])
        taught = states.split([len(row.answer) for row in rows])
    losses = distil(draft, rows, taught, recipe, pad)
    draft.save_pretrained(folder)
    return {
        "draft": str(folder),
        "recipe": asdict(recipe),
        "prompts": {"training": len(rows), "held_out": len(held)},
        "answer_tokens": {
            "training": sum(len(row.answer) for row in rows),
            "held_out": sum(len(row.answer) for row in held),
        },
        "subsets": {
            name: {"agreement": a, "layers": list(kept)} for name, (a, kept) in tried.items()
        },
        "chosen": best,
        "parameters": {
            "target": checkpoint.parameters,
            "draft": sum(p.numel() for p in draft.parameters()),
        },
        "kl_nats_a_token": {"first_step": losses[0], "last_steps": _mean(losses[-10:])},
        "agreement": {"before": before, "after": agreement(draft, held, recipe.batch, pad)},
        "seconds": {"answering": answered_s, "all": time.monotonic() - started},
    }


def write_texts(checkpoint: Checkpoint, folder: Path) -> None:
    """Write tokenizer and chat template of the target beside the draft's weights."""
    (folder / "tokenizer.json").write_text(tokenizer_json(checkpoint), encoding="utf-8")
    template = checkpoint.chat_template
    if template is None:
        raise click.ClickException(f"{checkpoint.path} has no chat template")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@click.command()
@click.option("--gguf", required=True, help="SmolLM2-135M-Instruct as GGUF; any Llama-like one.")
@click.option("--train", required=True, help="Prompts: a task file, gsm8k:FILE, ...")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder."
)
@click.option("--layers", default=Recipe.layers, show_default=True, help="Layers to keep.")
@click.option("--items", default=Recipe.items, show_default=True, help="Prompts to answer.")
@click.option("--epochs", default=Recipe.epochs, show_default=True)
@click.option("--batch", default=Recipe.batch, show_default=True)
@click.option("--answer-tokens", default=Recipe.answer_tokens, show_default=True)
@click.option("--learning-rate", default=Recipe.learning_rate, show_default=True)
@click.option("--seed", default=Recipe.seed, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    gguf: str,
    train: str,
    output: Path,
    layers: int,
    items: int,
    epochs: int,
    batch: int,
    answer_tokens: int,
    learning_rate: float,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    r"""Make a draft from some of a model's own layers.

    \b
    Example:
      python -m bench.smollm2_pair --gguf SmolLM2-135M-Instruct.Q4_1.gguf \
        --train gsm8k:train.jsonl --output .cache/smollm2-draft
    """
    torch.set_num_threads(threads)
    recipe = Recipe(layers, items, answer_tokens, epochs, batch, learning_rate, seed)
    result = make_draft(gguf, train, output, recipe)
    text = json.dumps(result, indent=2)
    (output / "summary.json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
        return
    change = result["agreement"]
    click.echo(
        f"{result['draft']}: {layers} layers ({result['chosen']}), greedy agreement "
        f"{change['before']:.1%} before and {change['after']:.1%} after, "
        f"{result['seconds']['all'] / 60:.0f} min"
    )


if __name__ == "__main__":
    main()
