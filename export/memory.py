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

PEAK_FACTOR = 1.5
"""Peak memory of an export in units of the exported weights: the module, and the tensors that are
being written."""
FIXED_BYTES = 1_100_000_000
"""torch, transformers, the exporter and the runtime of the gate, whatever the model."""
DISK_FACTOR = 1.05
DISK_FIXED_BYTES = 64_000_000
"""Graphs, tokenizer and manifest beside the weights."""

MIN_CAPACITY = 16
"""Tokens. Less has no room for a prompt and its answer."""


@dataclass(frozen=True)
class MemoryPlan:
    """Estimates for one export; all sizes in bytes.

    Attributes:
        precision: of the exported weights.
        capacity: tokens in the cache.
        disk_path: where the bundle goes; need not exist yet.
        weight_bytes: per model, in the order given.
        kv_cache_bytes: per model: keys and values of all layers at full capacity.
        peak_bytes: memory. The models are exported one after the other, so it is the largest one's.
        disk_bytes: room on the disk.
    """

    precision: str
    capacity: int
    disk_path: Path
    weight_bytes: tuple[int, ...]
    kv_cache_bytes: tuple[int, ...]
    peak_bytes: int
    disk_bytes: int


def plan(
    checkpoints: Sequence[Checkpoint], precision: str, capacity: int, disk_path: Path
) -> MemoryPlan:
    """Estimate memory and disk of exporting the checkpoints one after the other.

    Args:
        checkpoints: target, and draft if there is one.
        precision: a key of BYTES_PER_WEIGHT.
        capacity: tokens that the cache holds.
        disk_path: where the bundle goes.

    Raises:
        UsageError: a capacity that a model cannot honour.
    """
    check_capacity(checkpoints, capacity)
    weights = tuple(checkpoint.weight_bytes(precision) for checkpoint in checkpoints)
    caches = tuple(kv_cache_bytes(c.config, capacity, precision) for c in checkpoints)
    return MemoryPlan(
        precision=precision,
        capacity=capacity,
        disk_path=disk_path,
        weight_bytes=weights,
        kv_cache_bytes=caches,
        peak_bytes=int(PEAK_FACTOR * max(weights)) + FIXED_BYTES,
        disk_bytes=int(DISK_FACTOR * sum(weights)) + DISK_FIXED_BYTES,
    )


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
        cheaper = "--precision fp16, or export" if needed.precision == "fp32" else "Export"
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
