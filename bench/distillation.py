"""Make a small copy of a decoder from some of its own layers, and distil it on the original's answers.

Used by `bench.smollm2_pair`; nothing here is particular to one model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

CLIP_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """How the draft is made.

    Attributes:
        layers: that it keeps.
        items: prompts that the target answers.
        answer_tokens: longest answer.
        epochs: passes over the answers.
        batch: answers of one step, and of one pass of generation.
        learning_rate: at its peak; it rises over a twentieth of the steps and falls as a cosine.
        seed: which prompts, and their order.
    """

    layers: int = 8
    items: int = 256
    answer_tokens: int = 64
    epochs: int = 3
    batch: int = 8
    learning_rate: float = 1e-3
    seed: int = 0

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` of `steps`, both counted from the first."""
        rise = min(1.0, (step + 1) / max(1, steps // 20))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Row:
    """One prompt with the target's greedy answer, as token ids."""

    prompt: list[int]
    answer: list[int]


def subsets(total: int, kept: int) -> dict[str, tuple[int, ...]]:
    """Candidate choices of `kept` of `total` layers, by name; each begins with the first layer.

    Raises:
        click.ClickException: there is nothing to choose.
    """
    if not 2 <= kept < total:
        raise click.ClickException(f"{kept} of {total} layers: keep at least 2, and not all")
    last, half, tail = total - 1, kept // 2, max(1, kept // 4)
    return {
        "evenly spaced": tuple(round(i * last / (kept - 1)) for i in range(kept)),
        "first and the last": (*range(kept - 1), last),
        "front": (*range(kept - tail), *range(total - tail, total)),
        "both ends": (*range(kept - half), *range(total - half, total)),
    }


def shortened(module: Any, layers: Sequence[int]) -> Any:
    """Return a copy of a Llama-like module with only some of its layers, in their order.

    Args:
        module: a transformers `...ForCausalLM` whose layers are called `model.layers.I`.
        layers: which of them; all else is taken over.
    """
    config = copy.deepcopy(module.config)
    config.num_hidden_layers = len(layers)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[i] for i in layers]
    # How the target was stored says nothing of the copy.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    short = type(module)(config).to(module.dtype).eval()
    place = {f"model.layers.{layer}.": f"model.layers.{i}." for i, layer in enumerate(layers)}
    weights = {}
    for name, value in module.state_dict().items():
        old = next((prefix for prefix in place if name.startswith(prefix)), None)
        if old is not None:
            weights[place[old] + name.removeprefix(old)] = value
        elif not name.startswith("model.layers."):
            weights[name] = value
    short.load_state_dict(weights)
    return short


def answer_states(module: Any, rows: Sequence[Row], pad: int) -> Tensor:
    """Last hidden states [n, H] in front of every answer token of `rows`, in order.

    What all prompts begin with (worked examples, say) is computed once for the batch. Rows are padded
    on the right: with causal attention no real token sees the padding.
    """
    shared = _shared(rows)
    length = max(len(row.prompt) + len(row.answer) for row in rows) - shared
    tokens = torch.full((len(rows), length), pad)
    predicts = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids = [*row.prompt, *row.answer][shared:]
        tokens[i, : len(ids)] = torch.tensor(ids)
        predicts[i, len(row.prompt) - shared - 1 : len(ids) - 1] = True
    cache = None
    if shared:
        begin = torch.tensor([rows[0].prompt[:shared]])
        cache = module.model(input_ids=begin, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
    out = module.model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None)
    states: Tensor = out.last_hidden_state
    return states[predicts]


def _shared(rows: Sequence[Row]) -> int:
    """How many tokens all prompts begin with; the last of each prompt never counts."""
    shortest = min(len(row.prompt) for row in rows) - 1
    first = rows[0].prompt
    same = (all(row.prompt[i] == first[i] for row in rows) for i in range(shortest))
    return sum(1 for _ in takewhile(bool, same))


def distillation_loss(draft: Any, rows: Sequence[Row], taught: Tensor, pad: int) -> Tensor:
    """Mean KL(target || draft) over the answer tokens of `rows`, in nats.

    Args:
        draft: whose head is the target's own.
        rows: a batch.
        taught: the target's `answer_states` of the same rows.
        pad: any token id.
    """
    log_p = torch.log_softmax(draft.lm_head(taught), dim=-1)
    log_q = torch.log_softmax(draft.lm_head(answer_states(draft, rows, pad)), dim=-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


@torch.no_grad()  # type: ignore[untyped-decorator]
def agreement(draft: Any, rows: Sequence[Row], batch: int, pad: int) -> float:
    """Share of the answer tokens of `rows` that are the draft's own greedy choice."""
    same = total = 0
    for some in cut(rows, batch):
        chosen = draft.lm_head(answer_states(draft, some, pad)).argmax(dim=-1)
        wanted = torch.tensor([token for row in some for token in row.answer])
        same += int((chosen == wanted).sum())
        total += len(wanted)
    return same / total


def distil(
    draft: Any, rows: Sequence[Row], taught: Sequence[Tensor], recipe: Recipe, pad: int
) -> list[float]:
    """Train the draft's layers and last norm; return the loss of each step, in nats a token.

    Args:
        draft: changed in place.
        rows: answers to learn from.
        taught: per row the target's `answer_states`.
        recipe: epochs, batch, learning rate, seed.
        pad: any token id.
    """
    draft.requires_grad_(False)
    learned = [*draft.model.layers.parameters(), *draft.model.norm.parameters()]
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned, lr=recipe.learning_rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(recipe.seed)
    order = [
        some.tolist()
        for _ in range(recipe.epochs)
        for some in torch.randperm(len(rows), generator=generator).split(recipe.batch)
    ]
    losses: list[float] = []
    bar = tqdm(order, "distilling", unit="step")
    for step, some in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, len(order))
        states = torch.cat([taught[i] for i in some])
        loss = distillation_loss(draft, [rows[i] for i in some], states, pad)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, CLIP_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
        bar.set_postfix(kl=f"{sum(losses[-10:]) / len(losses[-10:]):.3f}", refresh=False)
    draft.requires_grad_(False)
    return losses


def cut(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut a sequence into pieces of `size`; the last may be shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]
