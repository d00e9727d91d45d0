"""Shared by the tests of the ONNX Runtime engine: sizes, a prompt, and graphs with damaged numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx

from cospec.runtime.engines.onnxruntime import (
    OrtDecoder,
    OrtOptions,
)

CAPACITY, VOCAB = 64, 320
POISON = 7
"""The token whose embedding is not finite in the damaged graphs."""

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84]
CPU = OrtOptions(provider="cpu", threads=1)


def poisoned(graph: Path, folder: Path, number: float) -> Path:
    """Copy a graph and write `number` into the embedding of POISON."""
    shutil.copytree(graph.parent, folder, ignore=shutil.ignore_patterns("*-*"))
    weights = onnx.load(graph, load_external_data=False).graph.initializer
    (embedding,) = (tensor for tensor in weights if "embed_tokens" in tensor.name)
    assert list(embedding.dims) == [VOCAB, 64]
    where = {entry.key: entry.value for entry in embedding.external_data}
    with (folder / where["location"]).open("r+b") as stream:
        stream.seek(int(where["offset"]) + POISON * 64 * 4)
        stream.write(np.float32(number).tobytes())
    return folder / "model.onnx"


def cached(decoder: OrtDecoder) -> np.ndarray:
    """Keys and values of what the cache holds, [2 * layers, heads, length, dim]."""
    return np.stack([v.numpy()[0, :, : decoder.length] for v in decoder._cache.values()])


def logits(decoder: OrtDecoder, tokens: list[int]) -> np.ndarray:
    found = decoder.step(tokens).logits
    assert found is not None
    return np.array(found)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to rounding, measured as the parity gate does: relative to the scale of all logits."""
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
