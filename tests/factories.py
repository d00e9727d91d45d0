"""Random tiny Hugging Face checkpoints of every supported family, made in well under a second.

Import it from any test (`from factories import random_checkpoint`): pytest puts tests/ on the path.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "smollm3",
)
#: Longest context that the sliding families (mistral, gemma2, gemma3_text) attend to.
SLIDING_WINDOW = 12
BOS, EOS = 0, 1
SPECIAL_TOKENS = ["<bos>", "<eos>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = [
    "The capital of France is Paris, and the capital of Spain is Madrid.",
    "Add 12 and 30: 12 + 30 = 42. Then take 7 away: 42 - 7 = 35. The answer is 35.",
    "One small model proposes a block of tokens; a larger model verifies the block in one pass.",
    "def add(left, right):\n    return left + right\n",
]
_HIDDEN, _HEADS, _KV_HEADS, _FFN = 64, 4, 2, 96


def random_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    vocab_size: int = 320,
    max_positions: int = 256,
    layers: int = 2,
    chat_template: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint (config, safetensors, tokenizer.json) and return its folder.

    The weights are wide enough that logits are not near-tied, norm weights and biases are random
    too, so that a transform that drops one of them cannot go unseen. Grouped-query attention,
    softcaps, sliding windows and untied heads are as in real models of the family.

    Args:
        folder: created if absent.
        family: one of FAMILIES.
        seed: of the weights; the tokenizer is the same for every seed and family.
        vocab_size: rows of the embedding, at least 300; larger than the tokenizer means padding.
        max_positions: `max_position_embeddings` (or the family's word for it).
        layers: decoder layers.
        chat_template: written as chat_template.jinja (see CHAT_TEMPLATE); None writes none.
        overrides: more config values; they win.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = _settings(family, vocab_size, max_positions, layers) | (overrides or {})
    config = CONFIG_MAPPING[family](**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _scatter_constants(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder, chat_template=chat_template)
    return folder


def perturbed(folder_in: Path, folder_out: Path, noise: float = 0.05, seed: int = 1) -> Path:
    """Copy a checkpoint and add noise to its weights, relative to each tensor's own spread.

    At `noise` 0.02 the copy's greedy token is the original's on about 0.8 of positions, at 0.05 on
    about 0.6: a draft that is right often and wrong often.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(folder_in, folder_out, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for file in sorted(folder_out.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt") as source:
            for name in sorted(source.keys()):
                weight = source.get_tensor(name).clone()
                shift = torch.randn(weight.shape, generator=generator) * weight.float().std()
                tensors[name] = (weight.float() + noise * shift).to(weight.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder_out


def write_tokenizer(
    folder: Path,
    *,
    size: int = 300,
    extra: list[str] | None = None,
    chat_template: str | None = None,
) -> Path:
    """Write tokenizer.json (byte-level BPE of `size` tokens) and what transformers reads beside it.

    Args:
        folder: created if absent.
        size: vocabulary with the specials and without `extra`; the corpus allows about 260 to 400.
        extra: further added tokens, after all others: a way to make a tokenizer that differs.
        chat_template: written as chat_template.jinja.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens(extra or [])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[EOS],
        # transformers 5 would otherwise add a padding token of its own to some families.
        "pad_token": SPECIAL_TOKENS[EOS],
        "unk_token": SPECIAL_TOKENS[EOS],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder / "tokenizer.json"


def _settings(family: str, vocab_size: int, max_positions: int, layers: int) -> dict[str, Any]:
    """Configuration values of a tiny model of the family."""
    common = {
        "vocab_size": vocab_size,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    if family == "gpt2":
        sizes = {
            "n_embd": _HIDDEN,
            "n_head": _HEADS,
            "n_layer": layers,
            "n_positions": max_positions,
        }
        return common | sizes | {"tie_word_embeddings": True}
    sizes = {
        "hidden_size": _HIDDEN,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": layers,
        "max_position_embeddings": max_positions,
        "intermediate_size": _FFN,
    }
    if family == "opt":
        del sizes["intermediate_size"]
        # OPT calls the spread of its initial weights init_std, and needs a padding id.
        own = {"ffn_dim": _FFN, "word_embed_proj_dim": _HIDDEN, "init_std": 0.2, "pad_token_id": 1}
        return common | sizes | own
    if family in ("phi", "gpt_neox"):
        return common | sizes
    sizes["num_key_value_heads"] = _KV_HEADS
    return common | sizes | _grouped_query_settings(family, layers, max_positions)


def _grouped_query_settings(family: str, layers: int, max_positions: int) -> dict[str, Any]:
    """What each family of the Llama line has of its own."""
    softcaps = {"attn_logit_softcapping": 8.0, "final_logit_softcapping": 12.0}
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    llama3_rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": max(max_positions // 4, 1),
    }
    own: dict[str, dict[str, Any]] = {
        "llama": {"rope_parameters": llama3_rope},
        "qwen2": {},
        "qwen3": {"head_dim": 32},
        "mistral": {"sliding_window": SLIDING_WINDOW, "head_dim": 16},
        "gemma2": softcaps
        | {"sliding_window": SLIDING_WINDOW, "head_dim": 32, "query_pre_attn_scalar": 32},
        "gemma3_text": {
            "sliding_window": SLIDING_WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": alternating,
        },
        "phi3": {"original_max_position_embeddings": max_positions},
        # Every second layer without rotary positions, so that two layers show both kinds.
        "smollm3": {"no_rope_layers": [1 - i % 2 for i in range(layers)]},
    }
    return own[family]


def _scatter_constants(model: Any) -> None:
    """Give biases and norm weights, which start as constants, values of their own."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if model.config.model_type.startswith("gemma") and ".post_" in name:
                # Gemma's head is its embedding: without louder layers a token only repeats itself.
                parameter.add_(6.0)
