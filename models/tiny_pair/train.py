"""Train the tiny pair: `python -m cospec.models.tiny_pair.train --role both --output DIR`.

Training is deterministic: batch and learning rate depend on the seed and the step only. So a run that
was stopped and resumed gives the same bits as one that was not, on the same machine with the same
number of threads.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import click
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from . import ROLES
from .pair_tokenizer import build_tokenizer, save_tokenizer
from .recipes import RECIPES, Recipe
from .tasks import draw, prompt, seeded, solve

# This many batches are cut from one pool sorted by length, so that a batch needs little padding.
_POOL = 8
_IGNORED = -100


class Run:
    """One model in training, with its optimiser and the number of steps done."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.step = 0
        torch.manual_seed(recipe.seed)
        self.model = LlamaForCausalLM(
            recipe.llama_config(
                len(tokenizer),
                tokenizer.pad_token_id,
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
            )
        )
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        norms = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
        )

    def advance(self, tokens: Tensor, labels: Tensor) -> float:
        """Run one optimiser step on a batch ([rows, length] each) and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(self.step)
        hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state
        # Only the positions with labels need logits: about half.
        learned = labels[:, 1:] != _IGNORED
        logits = self.model.lm_head(hidden[:, :-1][learned])
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][learned])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save_state(self, file: Path) -> None:
        """Write the state for resuming into one file, atomically."""
        tensors = {f"model/{name}": p.detach() for name, p in self.model.named_parameters()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
        scalars = json.dumps({"step": self.step, "recipe": self.recipe.as_json()})
        temporary = file.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"run": scalars})
        temporary.replace(file)

    def load_state(self, file: Path) -> None:
        """Continue from a saved state.

        Raises click.ClickException if the state belongs to another recipe. Only the number of
        steps may differ, and only before the learning rate begins to fall under either.
        """
        with safe_open(file, "pt") as stored:
            scalars = json.loads(stored.metadata()["run"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        before = scalars["recipe"]
        mine = json.loads(json.dumps(self.recipe.as_json()))
        same = {**before, "steps": 0} == {**mine, "steps": 0}
        decay_start = round(before["steps"] * (1 - self.recipe.decay_share))
        decaying = scalars["step"] > min(decay_start, self.recipe.decay_start)
        if not same or (decaying and before["steps"] != mine["steps"]):
            raise click.ClickException(
                f"{file} was made with another recipe; use that one or another --output"
            )
        self.step = scalars["step"]
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def save_checkpoint(self, folder: Path) -> None:
        """Write the Hugging Face checkpoint; each file is replaced atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            self.model.save_pretrained(temporary)
            save_tokenizer(self.tokenizer, Path(temporary))
            for file in Path(temporary).iterdir():
                file.replace(folder / file.name)


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (tokens, labels) from step `start` on, each [batch, length] int64.

    Rows are padded on the right, where causal attention keeps real tokens from seeing the padding.
    Labels are -100 on the prompt: only the answer and the end-of-sequence token are learned.
    """
    for pool in range(start // _POOL, -(-recipe.steps // _POOL)):
        rows = _pool(recipe, tokenizer, seeded(recipe.role, recipe.seed, pool))
        first = start - pool * _POOL if pool == start // _POOL else 0
        for chunk in rows[first : recipe.steps - pool * _POOL]:
            length = max(len(tokens) for tokens, _ in chunk)
            tokens = torch.full((len(chunk), length), tokenizer.pad_token_id)
            labels = torch.full((len(chunk), length), _IGNORED)
            for row, (ids, prompt_length) in enumerate(chunk):
                tokens[row, : len(ids)] = torch.tensor(ids)
                labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
            yield tokens, labels


def _pool(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: Random
) -> list[list[tuple[list[int], int]]]:
    """Return shuffled batches of (token ids, prompt length), each of rows of similar length."""
    kinds, kind_weights = zip(*recipe.mixture, strict=True)
    styles, style_weights = zip(*recipe.style_mixture, strict=True)
    prompts, answers = [], []
    for _ in range(recipe.batch * _POOL):
        problem = draw(rng.choices(kinds, kind_weights)[0], "train", rng)
        prompts.append(prompt(problem))
        answers.append(solve(problem, rng, rng.choices(styles, style_weights)[0]))
    questions = tokenizer(prompts).input_ids
    solutions = tokenizer(answers, add_special_tokens=False).input_ids
    rows = [
        (question + solution + [tokenizer.eos_token_id], len(question))
        for question, solution in zip(questions, solutions, strict=True)
    ]
    rows.sort(key=lambda row: len(row[0]))
    chunks = [rows[i : i + recipe.batch] for i in range(0, len(rows), recipe.batch)]
    rng.shuffle(chunks)
    return chunks


def train(recipe: Recipe, output: Path, save_every: int = 100, minutes: float | None = None) -> Run:
    """Train one model to the end of its recipe, or for some minutes.

    Writes `output/<role>/` (the checkpoint) and `output/<role>.state.safetensors`, from which
    the next call resumes. Raises click.ClickException for a state of another recipe.
    """
    run = Run(recipe, build_tokenizer())
    state = output / f"{recipe.role}.state.safetensors"
    output.mkdir(parents=True, exist_ok=True)
    if state.exists():
        run.load_state(state)
    started = time.monotonic()
    average = None
    remaining = recipe.steps - run.step
    progress = tqdm(batches(recipe, run.tokenizer, run.step), recipe.role, remaining, mininterval=5)
    for tokens, labels in progress:
        loss = run.advance(tokens, labels)
        average = loss if average is None else 0.98 * average + 0.02 * loss
        progress.set_postfix(step=run.step, loss=f"{average:.4f}", refresh=False)
        over = minutes is not None and time.monotonic() - started > minutes * 60
        if over or run.step % save_every == 0:
            run.save_state(state)
            run.save_checkpoint(output / recipe.role)
            tqdm.write(f"{recipe.role} step {run.step} loss {average:.4f}")
        if over:
            return run
    run.save_state(state)
    run.save_checkpoint(output / recipe.role)
    return run


@click.command()
@click.option("--role", type=click.Choice([*ROLES, "both"]), default="both", show_default=True)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the checkpoints and the states to resume from.",
)
@click.option("--steps", type=click.IntRange(1), help="Number of steps. Default: the recipe's.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Stop each model after this many minutes; the same command continues from there.",
)
@click.option("--save-every", type=click.IntRange(1), default=100, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads. The packaged weights were trained with one thread per model.",
)
def main(
    role: str,
    output: Path,
    steps: int | None,
    minutes: float | None,
    save_every: int,
    threads: int,
) -> None:
    """Train the tiny draft, the tiny target, or both one after the other."""
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    for name in ROLES if role == "both" else (role,):
        recipe = RECIPES[name]
        if steps is not None:
            recipe = replace(recipe, steps=steps)
        train(recipe, output, save_every, minutes)


if __name__ == "__main__":
    main()
