"""Small GGUF files with a whole vocabulary, made in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPM_TOKENS = [
    ("<unk>", UNKNOWN),
    ("<s>", CONTROL),
    ("</s>", CONTROL),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    *((token, NORMAL) for token in ("\u2581", "a", "b", "c", "d", "e", "i", "\u2581a", "ab")),
]


def byte_level(*more: tuple[str, int]) -> list[tuple[str, int]]:
    """The 256 byte tokens, then `more` as (text, type), then one for a merge."""
    return [(token, NORMAL) for token in ALPHABET] + [*more, ("ab", NORMAL)]


def write_gguf(
    file: Path,
    tokens: list[tuple[str, int]],
    *,
    kind: str = "llama",
    architecture: str = "llama",
    merges: list[str] | None = None,
    sizes: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[np.float32]] | None = None,
    **metadata: Any,
) -> Path:
    """Write a file.

    Args:
        file: to write.
        tokens: (text, type) by id.
        kind: `tokenizer.ggml.model`: llama (sentencepiece) or gpt2 (byte-level).
        architecture: `general.architecture`.
        merges: of a byte-level vocabulary.
        sizes: keys of the architecture, without its name.
        tensors: none needed to read the tokenizer.
        metadata: keys below `tokenizer.`, with `__` for a dot; None leaves a key out.
    """
    writer = gguf.GGUFWriter(file, architecture)
    shape = {
        "context_length": 64,
        "embedding_length": 8,
        "feed_forward_length": 8,
        "block_count": 1,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": 8,
    } | (sizes or {})
    for key, value in shape.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    if kind == "llama":
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
    else:
        writer.add_token_merges(merges or ["a b"])
    for key, value in metadata.items():
        name = f"tokenizer.{key.replace('__', '.')}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_string(name, value)
    for name, tensor in (
        tensors or {"token_embd.weight": np.zeros((len(tokens), 8), np.float32)}
    ).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
