"""Train the specialist: a LoRA adapter that makes the 0.5B good at GSM8K in short working.

Trains on GSM8K's training set only. Every step is saved; the same command continues after a kill,
with the same batches and rates, so a run that was interrupted gives the same adapter.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from tqdm import tqdm

from cospec.runtime.bundle.durable import write_json
from cospec.runtime.cli.common import CospecCommand

from .short_working import Problem, read_problems

if TYPE_CHECKING:
    import torch

RANK = 8
LEARNING_RATE = 2e-4
WARM_UP_STEPS = 10
BATCH = 16
PART = 2
"""Examples of one forward pass; the gradients of a batch are summed over its parts."""
SAVE_EVERY = 5
IGNORED = -100
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

EPILOG = """
\b
Example:
  python -m bench.real_pair.train_draft --base .cache/real/draft --gsm8k gsm8k_train.jsonl \\
    --output .cache/real/draft-lora
  cospec-export --target .cache/real/target.gguf --draft .cache/real/draft \\
    --draft-adapter .cache/real/draft-lora --output bundles/specialist
"""
_folder = click.Path(path_type=Path, file_okay=False)


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option("--base", type=_folder, required=True, help="The unpacked draft.")
@click.option("--gsm8k", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--output", type=_folder, required=True, help="Folder for the adapter.")
@click.option("--steps", default=160, show_default=True, help=f"Steps of {BATCH} examples.")
@click.option("--seed", default=0, show_default=True, help="Of the adapter and of the batches.")
@click.option("--threads", type=int, help="Threads of torch. Default: all cores.")
def main(base: Path, gsm8k: Path, output: Path, steps: int, seed: int, threads: int | None) -> None:
    """Train a LoRA adapter for the draft on GSM8K's training set."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    problems = _usable(read_problems(gsm8k))
    run = _Run(base, problems, output, steps, seed)
    steps_left = range(run.done, steps)
    bar = tqdm(steps_left, initial=run.done, total=steps, disable=not sys.stderr.isatty())
    for step in bar:
        loss = run.step(step)
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            run.save(step + 1, loss)
    click.echo(f"{output}: {steps} steps")


class _Run:
    """A training run: the adapted model, its optimizer, and the folder that holds what is done."""

    def __init__(
        self, base: Path, problems: list[Problem], output: Path, steps: int, seed: int
    ) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._problems, self._output, self._steps, self._seed = problems, output, steps, seed
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        torch.manual_seed(seed)
        begun = output / "run.json"
        settings = json.loads(begun.read_text()) if begun.is_file() else None
        self._dtype = fastest_dtype() if settings is None else settings["dtype"]
        model = AutoModelForCausalLM.from_pretrained(base, dtype=self._dtype)
        config = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=LAYERS,
            task_type="CAUSAL_LM",
        )
        self._model: Any = get_peft_model(model, config)
        self._weights = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(self._weights.values(), weight_decay=0.0)
        self.done = 0
        if settings is not None:
            self._load(settings)

    def step(self, step: int) -> float:
        """Train on one batch; return its mean loss."""
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = _rate(step, self._steps)
        picked = _examples(len(self._problems), self._seed, step + 1)
        batch = [self._example(self._problems[i]) for i in picked[-BATCH:]]
        batch.sort(key=lambda example: len(example[0]))  # parts of similar length: less padding
        count = sum(len(answer) for _, answer in batch)
        total = 0.0
        for start in range(0, BATCH, PART):
            loss = self._loss(batch[start : start + PART]) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def save(self, done: int, loss: float) -> None:
        """Save the adapter and the optimizer's state; a kill leaves this save or the one before."""
        from safetensors.torch import save_file

        state = {}
        for name, weight in self._weights.items():
            for key, value in self._optimizer.state[weight].items():
                state[f"{key}/{name}"] = value
            state[f"weight/{name}"] = weight.detach()
        self._output.mkdir(parents=True, exist_ok=True)
        save_file(state, self._output / f"state-{done}.safetensors")
        self._model.save_pretrained(self._output)
        write_json(
            self._output / "run.json",
            {
                "seed": self._seed,
                "steps": self._steps,
                "dtype": self._dtype,
                "done": done,
                "loss": loss,
            },
        )
        for old in self._output.glob("state-*.safetensors"):
            if old.name != f"state-{done}.safetensors":
                old.unlink()

    def _load(self, settings: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        if (settings["seed"], settings["steps"]) != (self._seed, self._steps):
            raise click.ClickException(
                f"{self._output} is a run with other settings: {settings}; name another folder"
            )
        self.done = settings["done"]
        state = load_file(self._output / f"state-{self.done}.safetensors")
        for name, weight in self._weights.items():
            weight.data.copy_(state[f"weight/{name}"])
            self._optimizer.state[weight] = {
                key: state[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }

    def _example(self, problem: Problem) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt, and those of the answer with its end."""
        prompt = self._tokenizer.apply_chat_template(
            list(problem.messages()), add_generation_prompt=True, return_dict=False
        )
        answer = self._tokenizer.encode(problem.working or "", add_special_tokens=False)
        return prompt, [*answer, self._tokenizer.eos_token_id]

    def _loss(self, part: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """Return the summed loss of the answers' tokens; only their rows pass the head."""
        import torch

        width = max(len(prompt) + len(answer) for prompt, answer in part)
        ids = torch.full((len(part), width), self._tokenizer.eos_token_id)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, (prompt, answer) in enumerate(part):
            tokens = torch.tensor(prompt + answer)
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            labels[row, len(prompt) - 1 : len(tokens) - 1] = tokens[len(prompt) :]
        causal = self._model.get_base_model()
        hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = causal.lm_head(hidden[labels != IGNORED]).float()
        return torch.nn.functional.cross_entropy(logits, labels[labels != IGNORED], reduction="sum")


def trained_on(adapter: Path, problems: Sequence[Problem]) -> set[int]:
    """Return the numbers of the problems that an adapter has seen; `problems` are those of its file."""
    run = json.loads((adapter / "run.json").read_text())
    usable = _usable(problems)
    return {usable[i].number for i in _examples(len(usable), run["seed"], run["steps"])}


def _usable(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.working]


def _examples(count: int, seed: int, steps: int) -> list[int]:
    """Return the indices of the examples of so many steps, BATCH a step, out of `count`."""
    order = np.random.default_rng(seed)
    picked: list[int] = []
    while len(picked) < steps * BATCH:  # epoch after epoch, each in an order of its own
        picked += order.permutation(count).tolist()
    return picked[: steps * BATCH]


def fastest_dtype() -> str:
    """Return bfloat16 if this CPU multiplies it, else float32.

    Where bfloat16 is emulated, torch 2.13 needs some 40 times longer for a product and its gradient.
    """
    import torch

    instructions = torch.cpu.get_capabilities()
    return "bfloat16" if any("bf16" in n and has for n, has in instructions.items()) else "float32"


def _rate(step: int, steps: int) -> float:
    """The learning rate: a linear rise, then half a cosine down to a tenth."""
    if step < WARM_UP_STEPS:
        return LEARNING_RATE * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return LEARNING_RATE * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


if __name__ == "__main__":
    main()
