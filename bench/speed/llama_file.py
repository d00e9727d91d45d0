"""A Llama checkpoint as a GGUF file, for llama.cpp.

llama.cpp's own converter knows tokenizers by the hash of what they make of a test text, and so not the
one of the controlled pair. This one writes the models of that pair, and no others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORDINARY, CONTROL = 1, 3
"""Kinds of tokens in a GGUF file."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, path: Path, kind: str = "F32") -> None:
    """Write the Llama in the folder `checkpoint` to `path`.

    Args:
        checkpoint: a Hugging Face folder with one safetensors file.
        path: of the GGUF file.
        kind: ggml type of the matrices, such as F32, Q8_0 or Q4_0; norms stay F32.
    """
    import gguf
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    _write_sizes(writer, config)
    _write_tokenizer(writer, checkpoint / "tokenizer.json")
    target = gguf.GGMLQuantizationType[kind]
    with safe_open(checkpoint / "model.safetensors", framework="np") as weights:
        for name in weights.keys():  # noqa: SIM118 (the object is no mapping)
            array = weights.get_tensor(name)
            if name.endswith("q_proj.weight"):
                array = _interleaved(array, config["num_attention_heads"])
            elif name.endswith("k_proj.weight"):
                array = _interleaved(array, config["num_key_value_heads"])
            packed = target if array.ndim == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(
                gguf_name(name), gguf.quants.quantize(array, packed), raw_dtype=packed
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Return the name of a weight in a GGUF file, such as `blk.3.ffn_up.weight`."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of each head: llama.cpp rotates neighbours, transformers halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _write_sizes(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_tokenizer(writer: Any, path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    special = {token["content"] for token in content["added_tokens"]}
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    ids |= content["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else ORDINARY for token in tokens])
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
