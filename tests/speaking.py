"""Checkpoints that say one thing: each token has one successor, whatever came before it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf_files import ALPHABET, CONTROL, NORMAL, byte_level, write_gguf
from numpy.typing import NDArray

HEADS, FFN = 2, 8


def _successors(
    tokens: list[str], said: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return embedding [V, H] and head [V, H] with which each token of `said` calls the next one.

    Every other token calls the first, so any prompt starts the speech.
    """
    width = -(-len(tokens) // (8 * HEADS)) * 8 * HEADS
    embedding, head = (np.zeros((len(tokens), width), np.float32) for _ in range(2))
    embedding[np.arange(len(tokens)), np.arange(len(tokens))] = 1
    ids = [tokens.index(token) for token in said]
    head[ids[0]] = 1
    for before, after in pairwise(ids):
        head[:, before] = 0
        head[after, before] = 1
    head[:, ids[-1]] = 0
    head[ids[0], ids[-1]] = 1
    return embedding, head


def write_speaking_gguf(
    file: Path,
    special: list[str],
    said: list[str],
    *,
    architecture: str = "llama",
    ordinary: tuple[str, ...] = (),
    **metadata: Any,
) -> Path:
    """Write a GGUF file whose model says `said` over and over.

    Args:
        file: to write.
        special: control tokens, after the 256 bytes.
        said: tokens, each of them once.
        architecture: llama or gemma2.
        ordinary: further tokens that are no control tokens.
        metadata: see `write_gguf`.
    """
    vocabulary = byte_level(*((t, CONTROL) for t in special), *((t, NORMAL) for t in ordinary))
    texts = [text for text, _ in vocabulary]
    embedding, head = _successors(texts, said)
    width = embedding.shape[1]
    key = width // HEADS
    zeros = {
        "attn_q": (width, width),
        "attn_k": (key, width),
        "attn_v": (key, width),
        "attn_output": (width, width),
        "ffn_gate": (FFN, width),
        "ffn_up": (FFN, width),
        "ffn_down": (width, FFN),
    }
    tensors = {f"blk.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in zeros.items()}
    norms = {"attn_norm": width, "ffn_norm": width}
    tensors |= {f"blk.0.{name}.weight": np.ones(size, np.float32) for name, size in norms.items()}
    tensors |= {
        "token_embd.weight": embedding,
        "output.weight": head,
        "output_norm.weight": np.ones(width, np.float32),
    }
    sizes = {
        "embedding_length": width,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.key_length": key,
        "attention.value_length": key,
        "rope.dimension_count": key,
    }
    own: dict[str, Any] = {"architecture": architecture, "sizes": sizes, "tensors": tensors}
    return write_gguf(file, vocabulary, kind="gpt2", **own, **metadata)


def write_speaking_folder(
    folder: Path, special: list[str], said: list[str], facts: dict[str, Any] | None = None
) -> Path:
    """Write a Hugging Face folder whose model says `said` over and over.

    Args:
        folder: created if absent.
        special: special tokens, after the 256 bytes.
        said: tokens, each of them once.
        facts: content of tokenizer_config.json.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = list(ALPHABET)
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    embedding, head = _successors([*texts, *special], said)
    config = LlamaConfig(
        vocab_size=len(embedding),
        hidden_size=embedding.shape[1],
        intermediate_size=FFN,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.from_numpy(embedding))
        model.lm_head.weight.copy_(torch.from_numpy(head))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast"} | (facts or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "generation_config.json").unlink()
    return folder
