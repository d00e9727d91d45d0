"""Which tokens the tests of a trimmed draft keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cospec.calibration.draft_vocabulary import most_frequent
from cospec.runtime.bundle.manifest import ModelEntry
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.decoding.placement import graph_shape
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions

OUTPUTS = (
    "token", "top_values", "top_ids", "logsumexp", "entropy", "next_input_logprob", "hidden", "logits",
)  # fmt: skip
TRIMMED = 128
TOKENS = np.random.default_rng(0).integers(3, 300, 12)


def engine(bundle: Path, graph: Path, entry: ModelEntry) -> OrtEngine:
    return OrtEngine(graph, graph_shape(read_manifest(bundle), entry), OrtOptions(threads=1))


def some_ids(bundle: Path, size: int = TRIMMED) -> np.ndarray:
    """Ids that are no run: whoever confuses places and ids is found out."""
    counts = np.random.default_rng(1).integers(0, 100, read_manifest(bundle).vocab_size)
    return most_frequent(counts, size, read_manifest(bundle))
