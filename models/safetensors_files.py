"""The weight files of a Hugging Face folder, checked and counted from their headers alone.

Only safetensors are read: a pickle runs code of whoever wrote it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, MissingExtraError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")
# Stored masks and counters of old checkpoints; anything else is a quantised format.
_BUFFERS = ("BOOL", "U8", "I64")


@dataclass(frozen=True)
class WeightFiles:
    """Weight files and what their headers say.

    Attributes:
        files: in the order of the index.
        parameters: floating-point numbers stored; a tied embedding counts once.
    """

    files: tuple[Path, ...]
    parameters: int


def read_weight_files(folder: Path) -> WeightFiles:
    """Find, check and count the safetensors of a folder without reading a tensor.

    Raises:
        CheckpointError: no safetensors, a shard that is missing, a file that is damaged, or
            weights in a quantised format. Names the file.
    """
    files = _find(folder)
    return WeightFiles(files, sum(_count(file) for file in files))


def _find(folder: Path) -> tuple[Path, ...]:
    # The same order of preference as transformers, so that what is checked is what is loaded.
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    index = folder / INDEX
    if not index.is_file():
        raise _no_safetensors(folder)
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = list(dict.fromkeys(names))
        wrong = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no valid index of weight files ({error}).", hint="Download it again."
        ) from error
    if wrong or not shards:
        raise CheckpointError(f"{index} names no files of its own folder: {wrong[:1] or 'empty'}.")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} weight files that {INDEX} lists are "
            f"missing, first {missing[0]}.",
            hint="The download or copy is incomplete; run it again.",
        )
    return tuple(folder / shard for shard in shards)


def _no_safetensors(folder: Path) -> CheckpointError:
    def first(*patterns: str) -> str | None:
        return next((f.name for p in patterns for f in sorted(folder.glob(p))), None)

    if adapter := first("adapter_model.*", "adapter_config.json"):
        return CheckpointError(
            f"{folder} holds an adapter ({adapter}), not a model.",
            hint="Merge it into its base model first (peft: merge_and_unload, save_pretrained).",
        )
    if pickle := first("pytorch_model*.bin", "*.bin", "*.pt", "*.pth"):
        return CheckpointError(
            f"{folder} holds its weights only as a pickle ({pickle}), which can run code and is "
            "not loaded.",
            hint="If you trust it, convert it to safetensors: python -c 'from transformers import "
            f'AutoModelForCausalLM as M; M.from_pretrained("{folder}", use_safetensors=False)'
            f'.save_pretrained("{folder}-safe")\' and copy the tokenizer files over.',
        )
    if gguf := first("*.gguf"):
        return CheckpointError(
            f"{folder} holds no safetensors, but a GGUF file.", hint=f"Name the file: {gguf}."
        )
    return CheckpointError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX}.")


def _count(file: Path) -> int:
    """Parameters in one file; opening it checks the header, the offsets and the file's length."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "export", "Reading a checkpoint") from error
    total = 0
    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                kind = part.get_dtype()
                if kind in _FLOATS:
                    total += math.prod(part.get_shape())
                elif kind not in _BUFFERS:
                    raise _quantised(file, name, kind)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or incomplete ({error}).", hint="Download or copy it again."
        ) from error
    return total


def _quantised(file: Path, name: str, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {name} is stored as {kind}, a quantised format that cannot be exported.",
        hint="Use the unquantised checkpoint; cospec quantises at export.",
    )
