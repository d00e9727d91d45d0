"""Small GGUF files with a whole vocabulary, made in a test."""

from __future__ import annotations

from collections.abc import Callable
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
    tensors: dict[str, NDArray[Any]] | None = None,
    kinds: dict[str, str] | None = None,
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
        kinds: ggml types of tensors that are given as bytes [rows, bytes].
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
        kind_of = (kinds or {}).get(name)
        raw = None if kind_of is None else gguf.GGMLQuantizationType[kind_of]
        writer.add_tensor(name, tensor, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def quantised(kind: str, rows: int, inputs: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return bytes of a kind [rows, bytes] whose weights are random, with a spread of about 0.1."""
    from cospec.models.weights.gguf_kinds import RECORDS

    record = RECORDS[kind]
    per_record, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (rows, inputs // per_record * record.itemsize), dtype=np.uint8)
    records = data.view(record)
    # Of K-quants the scale is multiplied by another number, up to 63 or of 8 bits.
    step = {"Q8_0": 1e-3, "Q6_K": 5e-5, "Q4_K": 5e-4, "Q5_K": 3e-4}.get(kind, 2e-2)
    spread = 0.5 + rng.random(records.shape)
    records["d"] = step * spread
    for name, middle in (("m", -8.0), ("dmin", 8.0)):
        if name in (record.names or ()):
            records[name] = middle * step * spread * (2 if kind[1] == "5" else 1)
    return data


def random_gguf(
    file: Path,
    kind_of: Callable[[str], str],
    *,
    architecture: str = "llama",
    is_tied: bool = True,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Write a small random model; `kind_of` returns the kind of a matrix for its name.

    It has 256 inputs, the block of K-quants, and heads that are shared by two queries.
    """
    rng = np.random.default_rng(seed)
    hidden, ffn, heads, kv_heads, head = 256, 512, 8, 4, 32
    tokens = byte_level(("<s>", CONTROL), ("</s>", CONTROL), ("ab", NORMAL))
    shapes: dict[str, tuple[int, int]] = {"token_embd": (len(tokens), hidden)}
    vectors = {"output_norm.weight": hidden}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_q": (heads * head, hidden),
            f"blk.{i}.attn_k": (kv_heads * head, hidden),
            f"blk.{i}.attn_v": (kv_heads * head, hidden),
            f"blk.{i}.attn_output": (hidden, heads * head),
            f"blk.{i}.ffn_gate": (ffn, hidden),
            f"blk.{i}.ffn_up": (ffn, hidden),
            f"blk.{i}.ffn_down": (hidden, ffn),
        }
        vectors |= {f"blk.{i}.{name}_norm.weight": hidden for name in ("attn", "ffn")}
        if architecture == "qwen2":
            sizes = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
            vectors |= {f"blk.{i}.attn_{name}.bias": size for name, size in sizes.items()}
    if not is_tied:
        shapes["output"] = (len(tokens), hidden)
    tensors: dict[str, NDArray[Any]] = {}
    kinds = {}
    for name, shape in shapes.items():
        kind = kind_of(name)
        if kind in ("F32", "F16"):
            dtype = {"F32": np.float32, "F16": np.float16}[kind]
            tensors[f"{name}.weight"] = (0.1 * rng.standard_normal(shape)).astype(dtype)
        else:
            kinds[f"{name}.weight"] = kind
            tensors[f"{name}.weight"] = quantised(kind, *shape, rng)
    for name, size in vectors.items():
        tensors[name] = (0.5 + rng.random(size)).astype(np.float32)
    return write_gguf(
        file,
        tokens,
        kind="gpt2",
        architecture=architecture,
        sizes={
            "context_length": 128,
            "embedding_length": hidden,
            "feed_forward_length": ffn,
            "block_count": layers,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head,
            "attention.value_length": head,
            "rope.dimension_count": head,
        },
        tensors=tensors,
        kinds=kinds,
        ggml__bos_token_id=256,
        ggml__eos_token_id=257,
    )
