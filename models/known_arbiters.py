"""The arbiters that come with the package, each found by the files of the pair it was trained for.

A folder below `models/arbiters/` holds what `cospec-calibrate arbiter` writes, and `pair.json`:

    {"target": FILE, "draft": FILE, "draft_adapter": FILE}    FILE: {"size": BYTES, "sha256": HEX}

An arbiter is worth nothing on other weights, so names do not count, only bytes.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct, json

from ..runtime.bundle.files import sha256_of

ARBITERS = Path(__file__).parent / "arbiters"

_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


class _File(Struct):
    size: int
    sha256: str


class _Pair(Struct):
    target: _File
    draft: _File
    draft_adapter: _File | None = None


def known_arbiter(
    target: Path, draft: Path, draft_adapter: Path | None = None, known: Path = ARBITERS
) -> Path | None:
    """Return the folder of the arbiter that was trained for a pair, or None.

    Args:
        target: GGUF file or folder of the target.
        draft: the same of the draft.
        draft_adapter: folder of the adapter that is merged into the draft.
        known: folder of such arbiters.
    """
    for path in sorted(known.glob("*/pair.json")):
        pair = json.decode(path.read_bytes(), type=_Pair)
        files = [(pair.target, target), (pair.draft, draft), (pair.draft_adapter, draft_adapter)]
        if all(_is_of(file, model) for file, model in files):
            return path.parent
    return None


def _is_of(file: _File | None, model: Path | None) -> bool:
    """Whether a model has these weights, or both are None; the size is compared before the hash."""
    if file is None or model is None:
        return file is None and model is None
    path = _weights(model)
    return path is not None and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _weights(model: Path) -> Path | None:
    """Return the one file that holds the weights of a model or adapter, or None."""
    if model.is_file():
        return model
    return next((model / name for name in _WEIGHTS if (model / name).is_file()), None)
