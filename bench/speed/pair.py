"""The controlled pair: a target with its draft inside, so that one number sets how often they agree.

Random weights have no meaning, but a pass over them costs what a pass over any weights costs. The
draft is a small Llama; the target is a larger one whose first residual dimensions, heads, MLP units
and layers are the draft's. All else in the target is random, and what of it reaches the residual is
scaled by `noise`: at 0 both models choose the same token always, and the more noise, the less often.
An infinite noise takes another seed for the draft: two models that have nothing to do with each other.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError

if TYPE_CHECKING:
    import torch

SPECIAL_TOKENS = ("<s>", "</s>")
"""Their rows of the head are zero, so that greedy decoding never chooses one and never ends early."""

BYTES = 256
EMBEDDING_STD = 0.05
"""Small beside what the layers add: the next token then depends on more than on the last one."""

LOGIT_STD = 8.0
"""Of a random model, this peaks its distributions as those of trained models are: confidence means
something to the runtimes that look at it."""

QUERY_GAIN = 2.0
"""Sharpens the attention, so that the text depends on all of the context and does not loop."""

NOISE_GAIN = 0.1
"""What a noise of 1 is worth beside the draft's own weights: 0.2 leaves about 80 % agreement."""

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of one Llama; the head size is 64 unless given."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 64

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class PairShape:
    """Sizes of a controlled pair: about 200.8M and 19.0M parameters unless given.

    Both have as many query heads to a group, so that the draft's heads lie side by side in the target
    and weights that are quantised in blocks, of 128 at most, are rounded alike in both. Rounding costs
    random weights far more agreement than trained ones, and one number is to set it in every format.

    Attributes:
        vocab_size: of both models.
        positions: longest context of both.
        target: untied.
        draft: its embedding is its head too.
    """

    vocab_size: int = 32000
    positions: int = 16384
    target: LlamaShape = LlamaShape(1024, 12, 16, 4, 2816)
    draft: LlamaShape = LlamaShape(384, 4, 8, 2, 1024)


def write_pair(folder: Path, noise: float, seed: int = 0, shape: PairShape | None = None) -> None:
    """Write `target/` and `draft/` below `folder` as Hugging Face checkpoints.

    Args:
        folder: made if it is not there.
        noise: what the target adds to the draft, from 0 (they always agree) to infinity (unrelated).
        seed: of the weights.
        shape: of the two models.

    Raises:
        UsageError: a negative noise, or a shape whose target cannot hold its draft.
    """
    import torch

    shape = shape or PairShape()
    _check(noise, shape)
    generator = torch.Generator().manual_seed(seed)
    inner = _draft_weights(shape, generator)
    target = _target_weights(shape, inner, 1.0 if math.isinf(noise) else noise, generator)
    draft = inner if not math.isinf(noise) else _draft_weights(shape, generator)
    _save(folder / "target", shape, shape.target, target, tied=False, inner=shape.draft)
    _save(folder / "draft", shape, shape.draft, draft, tied=True, inner=shape.draft)


def _check(noise: float, shape: PairShape) -> None:
    if not noise >= 0:
        raise UsageError(f"the noise is {noise}, but must be at least 0")
    target, draft = shape.target, shape.draft
    fits = (
        draft.hidden <= target.hidden
        and draft.layers <= target.layers
        and draft.kv_heads <= target.kv_heads
        and draft.group <= target.group
        and draft.intermediate <= target.intermediate
        and draft.head_dim == target.head_dim
    )
    if not fits:
        raise UsageError("the target of a controlled pair must be at least as large as its draft")
    if not BYTES + len(SPECIAL_TOKENS) <= shape.vocab_size <= BYTES**2:
        raise UsageError(f"a vocabulary of {shape.vocab_size} tokens cannot be made up")


def _draft_weights(shape: PairShape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return random weights of the draft, in the names of transformers."""
    import torch

    draft = shape.draft
    weights = {
        "model.embed_tokens.weight": EMBEDDING_STD
        * torch.randn(shape.vocab_size, draft.hidden, generator=generator),
        # The norm before the head scales the logits.
        "model.norm.weight": torch.full(
            (draft.hidden,), LOGIT_STD / (EMBEDDING_STD * math.sqrt(draft.hidden))
        ),
    }
    weights["model.embed_tokens.weight"][: len(SPECIAL_TOKENS)] = 0
    for layer in range(draft.layers):
        weights |= _random_layer(layer, draft, generator)
    return weights


def _random_layer(
    layer: int, shape: LlamaShape, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return one layer whose projections keep the size of what goes through them."""
    import torch

    def linear(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)

    name = f"model.layers.{layer}."
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        name + "input_layernorm.weight": torch.ones(shape.hidden),
        name + "post_attention_layernorm.weight": torch.ones(shape.hidden),
        name + "self_attn.q_proj.weight": QUERY_GAIN * linear(width, shape.hidden),
        name + "self_attn.k_proj.weight": linear(kv_width, shape.hidden),
        name + "self_attn.v_proj.weight": linear(kv_width, shape.hidden),
        name + "self_attn.o_proj.weight": linear(shape.hidden, width),
        name + "mlp.gate_proj.weight": linear(shape.intermediate, shape.hidden),
        name + "mlp.up_proj.weight": linear(shape.intermediate, shape.hidden),
        name + "mlp.down_proj.weight": linear(shape.hidden, shape.intermediate),
    }


def _target_weights(
    shape: PairShape,
    inner: dict[str, torch.Tensor],
    noise: float,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Return the target's weights: the draft's where it lies, random ones elsewhere."""
    import torch

    target, draft = shape.target, shape.draft
    h = draft.hidden
    # RMSNorm divides by the root of the mean square, here over more dimensions: this makes it equal.
    equal = math.sqrt(h / target.hidden)
    embedding = EMBEDDING_STD * torch.randn(shape.vocab_size, target.hidden, generator=generator)
    head = EMBEDDING_STD * torch.randn(shape.vocab_size, target.hidden, generator=generator)
    embedding *= noise * NOISE_GAIN
    embedding[:, :h] = inner["model.embed_tokens.weight"]
    head[:, :h] = inner["model.embed_tokens.weight"]
    embedding[: len(SPECIAL_TOKENS)] = head[: len(SPECIAL_TOKENS)] = 0
    logit_scale = float(inner["model.norm.weight"][0])
    weights = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": torch.full((target.hidden,), equal * logit_scale),
    }
    for layer in range(target.layers):
        whole = _random_layer(layer, target, generator)
        name = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            whole[name + norm + ".weight"] *= equal
        for written in ("self_attn.o_proj", "mlp.down_proj"):
            whole[name + written + ".weight"] *= noise * NOISE_GAIN
        if layer < draft.layers:
            _embed(whole, inner, name, target, draft)
        weights |= whole
    return weights


def _embed(
    whole: dict[str, torch.Tensor],
    inner: dict[str, torch.Tensor],
    name: str,
    target: LlamaShape,
    draft: LlamaShape,
) -> None:
    """Write one layer of the draft into one of the target."""
    import torch

    h, d = draft.hidden, draft.head_dim
    # Query head j of the draft must meet the keys of its own group in the target.
    heads = [target.group * (j // draft.group) + j % draft.group for j in range(draft.heads)]
    rows = torch.cat([torch.arange(head * d, (head + 1) * d) for head in heads])
    whole[name + "self_attn.q_proj.weight"][rows, :h] = inner[name + "self_attn.q_proj.weight"]
    for kind in ("k_proj", "v_proj"):
        part = inner[f"{name}self_attn.{kind}.weight"]
        whole[f"{name}self_attn.{kind}.weight"][: part.shape[0], :h] = part
    output = whole[name + "self_attn.o_proj.weight"]
    output[:, rows] = 0  # what the draft's heads say goes where the draft has it, and nowhere else
    output[:h, rows] = inner[name + "self_attn.o_proj.weight"]
    units = draft.intermediate
    for kind in ("gate_proj", "up_proj"):
        whole[f"{name}mlp.{kind}.weight"][:units, :h] = inner[f"{name}mlp.{kind}.weight"]
    down = whole[name + "mlp.down_proj.weight"]
    down[:, :units] = 0
    down[:h, :units] = inner[name + "mlp.down_proj.weight"]


def _save(
    folder: Path,
    pair: PairShape,
    shape: LlamaShape,
    weights: dict[str, torch.Tensor],
    *,
    tied: bool,
    inner: LlamaShape,
) -> None:
    """Write one checkpoint: weights, configuration, tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": pair.vocab_size,
        "max_position_embeddings": pair.positions,
        "rope_theta": 10000.0,
        # Scaled like the mean square that it is added to.
        "rms_norm_eps": NORM_EPSILON * inner.hidden / shape.hidden,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    generation = {"bos_token_id": 0, "eos_token_id": 1}
    named = {"bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[1]}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer,
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder / "tokenizer.json", pair.vocab_size)


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """Write a byte-level tokenizer of that size: the bytes, and pairs of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    merges = []
    for left in alphabet:
        for right in alphabet:
            if len(vocabulary) == vocab_size:
                break
            merges.append((left, right))
            vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path))
