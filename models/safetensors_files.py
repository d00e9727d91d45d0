"""Find and check the weight files of a Hugging Face folder by their headers.

Only safetensors are read: loading a pickle can run code.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, MissingExtraError
from .metadata import read_json
from .weights.packing_config import PackingConfig

ADAPTER = "adapter_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_FLOATS = ("F64", "F32", "F16", "BF16")
# Stored masks and counters of old checkpoints; anything else is a quantised format.
_BUFFERS = ("BOOL", "U8", "I64")
_PACKED = ("I8", "I32")
"""What quantised matrices that can be read are stored as."""


@dataclass(frozen=True)
class WeightFiles:
    """Weight files and what their headers say.

    Attributes:
        files: in the order of the index.
        sizes: parameters by tensor name; a tied embedding appears once.
    """

    files: tuple[Path, ...]
    sizes: dict[str, int]


def read_weight_files(folder: Path, packing: PackingConfig | None = None) -> WeightFiles:
    """Find and check the safetensors of a folder, and list their tensors, without reading one.

    Args:
        folder: of the checkpoint.
        packing: the format of its quantised matrices, if it says that it has some.

    Raises:
        CheckpointError: no safetensors, a shard that is missing, a file that is damaged, or
            weights in a quantised format. Names the file.
    """
    files = _find(folder)
    sizes = {name: size for file in files for name, size in _sizes(file, packing).items()}
    return WeightFiles(files, sizes)


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


def other_kind(folder: Path) -> CheckpointError | None:
    """Return the error for a folder that holds an adapter or a GGUF file instead of a model."""
    if (folder / ADAPTER).is_file():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        export = shlex.join(
            ["cospec-export", "--target", str(base or "BASE"), "--adapter", str(folder)]
        )
        return CheckpointError(
            f"{folder} holds an adapter ({ADAPTER}), not a model.",
            hint=f"Export the base model with the adapter merged into it: {export}",
        )
    if gguf := sorted(folder.glob("*.gguf")):
        return CheckpointError(
            f"{folder} holds a GGUF file and no safetensors.",
            hint=f"Name the file: {shlex.join(['cospec-export', '--target', str(gguf[0])])}",
        )
    return None


def _no_safetensors(folder: Path) -> CheckpointError:
    pickles = [f for p in ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth") for f in folder.glob(p)]
    if not pickles:
        return other_kind(folder) or CheckpointError(
            f"{folder} holds no weights: neither {SINGLE} nor {INDEX}."
        )
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({str(folder)!r}, use_safetensors=False)"
        f".save_pretrained({str(folder) + '-safe'!r})"
    )
    return CheckpointError(
        f"{folder} holds its weights only as a pickle ({min(pickles).name}), which can run code and "
        "is not loaded.",
        hint="If you trust it, convert it to safetensors and copy the tokenizer files over: "
        f"{shlex.join(['python', '-c', code])}",
    )


def _sizes(file: Path, packing: PackingConfig | None) -> dict[str, int]:
    """Parameters by tensor; opening the file checks the header, the offsets and the file's length."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "export", "Reading a checkpoint") from error
    sizes = {}
    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                kind = part.get_dtype()
                numbers = math.prod(part.get_shape())
                if packing is not None and kind in (*_FLOATS, *_PACKED):
                    sizes[name] = packing.parameters(name, numbers)
                elif kind in _FLOATS:
                    sizes[name] = numbers
                elif kind not in _BUFFERS:
                    raise _quantised(file, name, kind)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or incomplete ({error}).", hint="Download or copy it again."
        ) from error
    return sizes


def _quantised(file: Path, name: str, kind: str) -> CheckpointError:
    if kind in _PACKED:
        return CheckpointError(
            f"{file}: {name} is quantised ({kind}), but the folder does not say in which format.",
            hint="Copy the whole folder again: config.json needs its quantization_config, or the "
            "folder its quantize_config.json (GPTQ) or quant_config.json (AWQ).",
        )
    return CheckpointError(
        f"{file}: {name} is stored as {kind}, a quantised format that cannot be exported.",
        hint="Use the unquantised checkpoint; cospec quantises at export.",
    )
