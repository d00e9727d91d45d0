"""The file of a saved cache: a hash, a header in JSON, and keys and values as raw numbers.

    cospec-cache SHA256-OF-THE-REST
    {"seal": "...", "tokens": [...], "lengths": {"target": 42, "draft": 41}}
    key and value of each layer of each model: [1, Hkv, length, D] in the cache's type

The bundle's manifest has every shape, so the file has none. A file that is larger than any cache of the
bundle is not read at all.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ...errors import BundleError
from ..bundle.durable import write_whole
from ..bundle.manifest import Manifest, ModelEntry

Role = Literal["target", "draft"]
Layers = list[tuple[NDArray[Any], NDArray[Any]]]
"""(key, value) [1, Hkv, length, D] of each layer."""

_MAGIC = b"cospec-cache "
_HASHED_FROM = len(_MAGIC) + 64 + 1
_BYTES_PER_TOKEN = 24
"""Most bytes of a token id in the header."""


class _Header(Struct, forbid_unknown_fields=True):
    seal: str
    tokens: list[Annotated[int, Meta(ge=0)]]
    lengths: dict[Role, Annotated[int, Meta(ge=0)]]


def write_cache(
    path: Path, manifest: Manifest, tokens: Sequence[int], models: Mapping[Role, Layers]
) -> None:
    """Write tokens, keys and values, whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    lengths = {role: layers[0][0].shape[2] for role, layers in models.items()}
    header = msgspec.json.encode(_Header(manifest.seal, list(tokens), lengths))
    arrays = [array for layers in models.values() for pair in layers for array in pair]
    rest = b"".join([header, b"\n", *(np.ascontiguousarray(array).data for array in arrays)])
    write_whole(path, _MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)


def read_cache(path: Path, manifest: Manifest) -> tuple[list[int], dict[Role, Layers]]:
    """Return the tokens, and keys and values of each model, which are views of the file's bytes.

    Raises:
        BundleError: the file is missing, damaged, or belongs to another bundle.
    """
    entries = {"target": manifest.models.target, "draft": manifest.models.draft}
    sizes = [
        0 if entry is None else entry.cache_bytes(manifest.capacity) for entry in entries.values()
    ]
    head = _HASHED_FROM + 200 + _BYTES_PER_TOKEN * (manifest.capacity + 1)
    data = _read_file(path, head + sum(sizes))
    if not data.startswith(_MAGIC):
        raise BundleError(f"{path} is no saved cache of this version of CoSpec")
    end = max(data.find(b"\n", _HASHED_FROM, head), _HASHED_FROM)
    header = _read_header(path, data, end)
    if header.seal != manifest.seal:
        raise BundleError(f"{path} was saved with another bundle", hint=_READ_AGAIN)
    if len(header.tokens) > manifest.capacity + 1 or any(
        token >= manifest.vocab_size for token in header.tokens
    ):
        raise _damaged(path, "its tokens do not fit the bundle")
    models: dict[Role, Layers] = {}
    rest = memoryview(data)[end + 1 :]
    for role, length in header.lengths.items():
        entry = entries[role]
        if entry is None or length > min(manifest.capacity, len(header.tokens)):
            raise _damaged(path, f"the length of the {role}'s cache does not fit")
        size = entry.cache_bytes(length)
        if size > len(rest):
            raise _damaged(path, f"the {role}'s cache is not complete")
        models[role] = _layers(rest[:size], entry, length)
        if not all(np.isfinite(array).all() for pair in models[role] for array in pair):
            raise _damaged(path, f"the {role}'s cache has a number that is not finite")
        rest = rest[size:]
    if rest:
        raise _damaged(path, "it is larger than its header says")
    return header.tokens, models


def _read_header(path: Path, data: bytes, end: int) -> _Header:
    """Return the header, which ends at `end`, after checking the hash of the file."""
    digest = hashlib.sha256(memoryview(data)[_HASHED_FROM:]).hexdigest().encode()
    if data[len(_MAGIC) : _HASHED_FROM] != digest + b"\n":
        raise _damaged(path, "its hash does not match")
    try:
        return msgspec.json.decode(data[_HASHED_FROM:end], type=_Header)
    except msgspec.MsgspecError as error:
        raise _damaged(path, f"its header cannot be read: {error}") from None


def _layers(data: memoryview, entry: ModelEntry, length: int) -> Layers:
    """Return the arrays of one model as views of its bytes."""
    numbers = np.frombuffer(data, dtype=entry.cache_dtype)
    layers, at = [], 0
    for heads, size in entry.kv_shapes:
        count = heads * length * size
        pair = [numbers[at + i * count :][:count].reshape(1, heads, length, size) for i in (0, 1)]
        layers.append((pair[0], pair[1]))
        at += 2 * count
    return layers


_READ_AGAIN = "read the text again instead; a cache fits only the bundle that saved it"


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is damaged: {why}", hint=_READ_AGAIN)


def _read_file(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody writes to would block
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
                raise BundleError(f"{path} is no saved cache of this bundle")
            return file.read(most + 1)
    except OSError as error:
        raise BundleError(f"{path} is no saved cache: {error.strerror}") from error
