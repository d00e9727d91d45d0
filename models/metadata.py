"""Facts from the small files beside the weights: limits, ends, sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BundleError, CheckpointError
from ..runtime.bundle.manifest import SamplingDefaults

_MAX_JSON_BYTES = 32 << 20
# Rotary tables that change once a context outgrows the trained length: below it, they are static.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def read_json(file: Path, *, required: bool = True) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint, or {} if an optional file is absent.

    Raises:
        CheckpointError: the file is missing, unreadable or not a JSON object.
    """
    if not file.is_file():
        if not required:
            return {}
        raise CheckpointError(
            f"{file.parent} is not a Hugging Face checkpoint: {file.name} is missing.",
            hint="Pass the folder that holds config.json, *.safetensors and tokenizer.json.",
        )
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("implausibly large")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object.")
    return content


def max_positions(config: Any) -> int | None:
    """Return the longest context in tokens of a transformers configuration; None for no limit."""
    limits = [getattr(config, "max_position_embeddings", None)]
    limits += [
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        for rope in _rotations(config)
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def fix_rotation(config: Any) -> None:
    """Replace NTK scaling (rope_type dynamic) by the plain rotation, in place.

    Up to `max_positions` the two are the same, and a bundle never goes beyond.
    """
    for rope in _rotations(config):
        if rope.get("rope_type") == "dynamic":
            rope["rope_type"] = "default"
            rope.pop("factor", None)


def _rotations(config: Any) -> list[dict[str, Any]]:
    """Return the rotary settings: one for all layers, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [settings for settings in rope.values() if isinstance(settings, dict)]
    return nested or [rope]


def sampling_defaults(file: Path) -> SamplingDefaults | None:
    """Return the author's sampling parameters from generation_config.json; None for greedy decoding.

    As in transformers, only the repetition penalty counts unless `do_sample` is set.

    Raises:
        CheckpointError: a value of the wrong type or out of range; names it.
    """
    stated = read_json(file, required=False)
    names = ["repetition_penalty"]
    if stated.get("do_sample"):
        names += ["temperature", "top_k", "top_p", "min_p"]
        stated = {"temperature": 1.0} | stated
    values = {name: stated[name] for name in names if stated.get(name) is not None}
    try:
        sampling = SamplingDefaults(**values)
    except BundleError as error:
        raise CheckpointError(f"{file}: {error.message}") from error
    return None if sampling == SamplingDefaults() else sampling
