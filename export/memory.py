"""Estimate from headers what an export needs, and refuse it early if the machine has less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, ResourceError, UsageError
from ..models.checkpoint import BYTES_PER_WEIGHT, Checkpoint
from ..runtime.bundle.durable import free_disk
from ..runtime.engines import host_memory
from .weights.chosen_weights import WeightChoice

FIXED_BYTES = 1_100_000_000
"""torch, transformers, the exporter and the runtime of the gate, whatever the model."""
MATRICES = 3
"""Copies of the largest matrix in fp32: as stored, as transformers reads it, and as packed. Of
most models it is the head."""
PACKED_FACTOR = 1.3
"""ONNX Runtime packs the weights of a graph in fp32, and integers with their scales in fp32, beside the
mapped file. Weights in fp16 stay in the file, whose pages the system can take back."""
INTEGER_BYTES = 1.07
"""A weight in eight bits with its scale; four bits end there if the limit asks for it."""
INT4_BYTES = 0.6
"""A weight in four bits, head and embedding in eight, as far as the system cannot take it back."""
KEPT_FACTOR = 1.15
"""A kept file's weights in the bundle, to those in the file."""
DISK_FACTOR = 1.05
DISK_FIXED_BYTES = 64_000_000
"""Graphs, tokenizer and manifest beside the weights."""

MIN_CAPACITY = 16
"""Tokens. Less has no room for a prompt and its answer."""


@dataclass(frozen=True)
class MemoryPlan:
    """Estimates for one export; all sizes in bytes.

    Attributes:
        precision: of the arithmetic.
        capacity: tokens in the cache.
        disk_path: where the bundle goes; need not exist yet.
        weight_bytes: of each model as it is stored, in the order given.
        kv_cache_bytes: per model: keys and values of all layers at full capacity.
        peak_bytes: memory. The models are exported one after the other, so it is the largest one's.
        in_four_bits: whether the target's weights are to be stored in four bits.
        disk_bytes: room on the disk.
    """

    precision: str
    capacity: int
    disk_path: Path
    weight_bytes: tuple[int, ...]
    kv_cache_bytes: tuple[int, ...]
    peak_bytes: int
    disk_bytes: int
    in_four_bits: bool = False


def plan(
    checkpoints: Sequence[Checkpoint],
    precision: str,
    capacity: int,
    disk_path: Path,
    weights: WeightChoice | Sequence[WeightChoice] = "fp32",
) -> MemoryPlan:
    """Estimate memory and disk of exporting the checkpoints one after the other.

    Args:
        checkpoints: target, and draft if there is one.
        precision: a key of BYTES_PER_WEIGHT.
        capacity: tokens that the cache holds.
        disk_path: where the bundle goes.
        weights: how all or each of them are stored, where the graph reads integers; `fp32` where it
            does not.

    Raises:
        UsageError: a capacity that a model cannot honour.
    """
    check_capacity(checkpoints, capacity)
    choices = [weights] * len(checkpoints) if isinstance(weights, str) else list(weights)
    pairs = list(zip(checkpoints, choices, strict=True))
    stored = tuple(_stored_bytes(checkpoint, precision, choice) for checkpoint, choice in pairs)
    caches = tuple(kv_cache_bytes(c.config, capacity, precision) for c in checkpoints)
    matrices = (MATRICES * 4 * c.vocab_size * int(c.config.hidden_size) for c in checkpoints)
    packed = (
        int(PACKED_FACTOR * _packed_bytes(c, precision, choice, size))
        for (c, choice), size in zip(pairs, stored, strict=True)
    )
    peaks = (sum(each) for each in zip(matrices, packed, caches, strict=True))
    return MemoryPlan(
        precision=precision,
        capacity=capacity,
        disk_path=disk_path,
        weight_bytes=stored,
        kv_cache_bytes=caches,
        peak_bytes=max(peaks) + FIXED_BYTES,
        disk_bytes=int(DISK_FACTOR * sum(stored)) + DISK_FIXED_BYTES,
        in_four_bits=choices[0] == "int4",
    )


def _packed_bytes(
    checkpoint: Checkpoint, precision: str, weights: WeightChoice, stored: int
) -> int:
    """Return the size of the weights that ONNX Runtime has in memory beside the file."""
    if precision == "fp16":
        return 0
    if weights == "fp16":  # are widened when the graph is loaded
        return checkpoint.weight_bytes("fp32")
    if weights == "int4":
        return int(INT4_BYTES * checkpoint.parameters)
    return int(INTEGER_BYTES * checkpoint.parameters) if weights == "auto" else stored


def _stored_bytes(checkpoint: Checkpoint, precision: str, weights: WeightChoice) -> int:
    """Return the size of a model's weights in the bundle."""
    plain = checkpoint.weight_bytes(precision)
    if weights in ("int4", "int8"):
        return int(INTEGER_BYTES * checkpoint.parameters)
    if weights == "auto":  # may end in half precision
        return min(plain, checkpoint.weight_bytes("fp16"))
    if weights == "keep":
        files = sum(file.stat().st_size for file in checkpoint.weight_files)
        is_quantised = checkpoint.gguf_file is not None or checkpoint.packing is not None
        return min(plain, int(KEPT_FACTOR * files)) if is_quantised else plain
    return plain


def check_capacity(checkpoints: Sequence[Checkpoint], capacity: int) -> None:
    """Refuse a capacity below MIN_CAPACITY or beyond what a model was made for.

    Raises:
        UsageError: names the model and its limit.
    """
    if capacity < MIN_CAPACITY:
        raise UsageError(f"A capacity of {capacity} tokens is too small; {MIN_CAPACITY} at least.")
    for checkpoint in checkpoints:
        limit = checkpoint.max_positions
        if limit is not None and capacity > limit:
            raise UsageError(
                f"A capacity of {capacity} tokens is beyond the limit of {checkpoint.name}, "
                f"which is {limit}.",
                hint=f"--capacity {limit} or less.",
            )


def ensure_fits(needed: MemoryPlan) -> None:
    """Refuse an export that this machine cannot hold.

    Raises:
        ResourceError: not enough memory or disk, with both figures.
    """
    memory = available_memory()
    if needed.peak_bytes > memory:
        is_least = needed.in_four_bits or needed.precision != "fp32"
        cheaper = "Export" if is_least else "--weights int4, or export"
        raise ResourceError(
            f"This export needs {_gb(needed.peak_bytes)} of memory at its peak; this machine has "
            f"{_gb(memory)} available.",
            hint=f"{cheaper} on another machine and copy the bundle here: "
            "running it needs far less.",
        )
    disk = free_disk(needed.disk_path)
    if needed.disk_bytes > disk:
        raise ResourceError(
            f"This bundle needs {_gb(needed.disk_bytes)} of disk; {needed.disk_path} has "
            f"{_gb(disk)} free.",
            hint="Free some space, or choose another place with --output.",
        )


def kv_cache_bytes(config: Any, capacity: int, precision: str) -> int:
    """Bytes of a full cache: keys and values, all layers, [1, Hkv, capacity, D] each."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    values = 2 * int(config.num_hidden_layers) * int(kv_heads) * int(head_size) * capacity
    return values * BYTES_PER_WEIGHT[precision]


def available_memory() -> int:
    """Return the bytes that can still be allocated: the machine's, or the container's if less."""
    known = host_memory.available_memory()
    if known is not None:
        return known
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("psutil", "export", "Estimating memory") from error
    return int(psutil.virtual_memory().available)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
