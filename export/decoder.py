"""The decoder graph of draft and target: a Hugging Face module behind our input and output names.

The module comes from transformers, unchanged. This file adds the static cache (through the attention
function in `attention.py`) and the summary of each row, which the host reads instead of the logits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .attention import ATTENTION_NAME, CachedAttention, CacheStep, Lowering, PassThroughCache

SUMMARY_TOP = 8
"""How many candidates a row of `top_values` and `top_ids` holds."""

LOWEST = float(torch.finfo(torch.float32).min)
"""The logit of a token that is never proposed. Finite, so that what is computed of it stays finite."""

SUMMARY_OUTPUTS = (
    "token",
    "top_values",
    "top_ids",
    "logsumexp",
    "entropy",
    "next_input_logprob",
)


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """One step of a causal language model over a static cache.

    Args:
        module: a transformers `...ForCausalLM` in eval mode.
        lowering: the form of the attention block.
        vocab_size: width of the logits; see `Vocabulary`.
        unshared: ids that are never the most likely.

    Inputs of `forward`: `input_ids` [1, S] int64, `cache_length` [1] int64, then `past.i.key` and
    `past.i.value` [1, Hkv, C, D] of every layer. Outputs in the order of `output_names`.
    """

    def __init__(
        self, module: Any, lowering: Lowering, vocab_size: int, unshared: Collection[int] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self.lowering: Lowering = lowering
        self.vocabulary = Vocabulary(module, vocab_size, unshared)

    def forward(
        self, input_ids: torch.Tensor, cache_length: torch.Tensor, past: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Run one step; see the class for shapes."""
        pairs = list(zip(past[0::2], past[1::2], strict=True))
        step = CacheStep(self.lowering, cache_length, pairs)
        positions = (cache_length + torch.arange(input_ids.shape[1])).unsqueeze(0)
        with _attending(self.module, step), head_input(self.module) as seen:
            logits = self.module(
                input_ids=self.vocabulary.read(input_ids),
                position_ids=positions,
                past_key_values=PassThroughCache(),
                use_cache=True,
            ).logits
        logits = self.vocabulary.write(logits)
        present = [t for i in range(len(pairs)) for t in step.present[i]]
        return (logits, *summary(logits, input_ids), seen[0].float(), *present)


class Vocabulary(torch.nn.Module):  # type: ignore[misc]
    """Fits a model to a vocabulary of another width, in which some ids are not its own.

    Args:
        module: a transformers `...ForCausalLM`.
        vocab_size: width of the logits. Rows of the head beyond it are cut off; where the head has
            fewer, LOWEST fills them up.
        unshared: ids whose logits become LOWEST.
    """

    def __init__(self, module: Any, vocab_size: int, unshared: Collection[int] = ()) -> None:
        super().__init__()
        self.size = vocab_size
        self.rows = int(module.get_input_embeddings().weight.shape[0])
        mask = None
        if unshared:
            mask = torch.zeros(vocab_size)
            mask[[index for index in unshared if index < self.rows]] = LOWEST
        self.register_buffer("unshared", mask)

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Return `ids` [1, S] with token 0 in place of those that the model has no embedding for."""
        return torch.where(ids < self.rows, ids, 0) if self.rows < self.size else ids

    def write(self, logits: torch.Tensor) -> torch.Tensor:
        """Return `logits` [1, S, rows] as [1, S, size] in float32."""
        logits = logits[..., : self.size].float()
        missing = self.size - logits.shape[-1]
        if missing > 0:
            logits = torch.nn.functional.pad(logits, (0, missing), value=LOWEST)
        return logits if self.unshared is None else logits + self.unshared


def summary(logits: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Reduce logits [1, S, V] to what a greedy round reads, in the order of `SUMMARY_OUTPUTS`.

    `next_input_logprob` [1, S] is the log-probability of the token that was fed *after* each row;
    the last row has no next token and scores its own input, a value that is never read.
    """
    top_values, top_ids = torch.topk(logits, min(SUMMARY_TOP, logits.shape[-1]), dim=-1)
    top = top_values[..., 0]
    # Relative to the likeliest token: a softmax over 150,000 tokens sums to one only up to 1e-5, and as
    # many products lose further digits. Both errors grow with the size of the logits.
    relative = logits - top.unsqueeze(-1)
    probabilities = torch.softmax(relative, dim=-1)
    # ONNX Runtime adds up a ReduceLogSumExp one number at a time: slowly, and right to 2e-3 only.
    normaliser = -torch.log(probabilities.amax(dim=-1))
    logsumexp = top + normaliser
    entropy = normaliser - (probabilities * relative).sum(dim=-1)
    following = torch.cat([input_ids[:, 1:], input_ids[:, -1:]], dim=1)
    fed = torch.gather(logits, 2, following.unsqueeze(-1)).squeeze(-1)
    return top_ids[..., 0], top_values, top_ids, logsumexp, entropy, fed - logsumexp


def input_names(layers: int) -> list[str]:
    """The graph's inputs in order."""
    past = [f"past.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    return ["input_ids", "cache_length", *past]


def output_names(layers: int) -> list[str]:
    """The graph's outputs in order."""
    present = [f"present.{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    return ["logits", *SUMMARY_OUTPUTS, "hidden", *present]


def kv_shapes(module: Any) -> list[tuple[int, int]]:
    """Return (kv_heads, head_dim) of every layer, measured in a forward pass of one token.

    Every family names these sizes differently in its configuration.
    """
    seen: dict[int, tuple[int, int]] = {}

    class Recorder(PassThroughCache):
        def update(
            self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
        ) -> tuple[torch.Tensor, torch.Tensor]:
            seen[layer_idx] = (int(key.shape[1]), int(key.shape[3]))
            return key, value

    with torch.no_grad():
        ids = torch.zeros((1, 1), dtype=torch.int64)
        module(input_ids=ids, position_ids=ids, past_key_values=Recorder(), use_cache=True)
    return [seen[i] for i in range(len(seen))]


@contextmanager
def _attending(module: Any, step: CacheStep) -> Iterator[None]:
    """Let every attention layer of `module` call our attention function for one forward."""
    from transformers import AttentionInterface

    attention = CachedAttention()
    attention.step = step
    AttentionInterface.register(ATTENTION_NAME, attention)
    before = module.config._attn_implementation
    module.config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        module.config._attn_implementation = before


@contextmanager
def head_input(module: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the input of the language-model head: the last hidden state in every family."""
    seen: list[torch.Tensor] = []
    handle = module.get_output_embeddings().register_forward_pre_hook(
        lambda _module, args: seen.append(args[0])
    )
    try:
        yield seen
    finally:
        handle.remove()
