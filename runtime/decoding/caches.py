"""The KV caches of a session, and which tokens they hold.

A prompt that begins like the last text is read only from where the two differ: the next turn of a
conversation, an edited question after the same instructions, a rewind to any point. A cache that was
saved to a file is accepted only by the bundle that wrote it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, UsageError
from ..bundle.durable import write_whole
from ..bundle.manifest import Manifest
from ..engines.protocol import Decoder, StoredDecoder


class Caches:
    """The decoders of target and draft, which hold the same text.

    Args:
        target: decoder of the target.
        draft: decoder of the draft, or None.
        manifest: of the bundle, whose seal and shapes a saved cache must have.
    """

    def __init__(self, target: Decoder, draft: Decoder | None, manifest: Manifest) -> None:
        self.target = target
        self.draft = draft
        self._manifest = manifest
        self._tokens: list[int] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """The text of the caches; the target's holds all of it but the last token or so."""
        return tuple(self._tokens)

    def begin(self, tokens: list[int]) -> int:
        """Hold `tokens` from now on, a list that the caller extends later.

        Returns:
            How many of them the target's cache holds already.
        """
        shared = common_prefix(self._tokens, tokens[:-1])
        for decoder in self._decoders().values():
            decoder.truncate(min(decoder.length, shared))
        self._tokens = tokens
        return self.target.length

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """Clear the caches if the body fails: what a failed round left in them is unknown."""
        try:
            yield
        except BaseException:  # Ctrl-C in mid-pass too
            self.clear()
            raise

    def clear(self) -> None:
        """Empty the caches."""
        self._tokens = []
        for decoder in self._decoders().values():
            decoder.truncate(0)

    def cut(self, length: int) -> None:
        """Drop everything after the first `length` tokens of the text."""
        del self._tokens[length:]
        for decoder in self._decoders().values():
            decoder.truncate(min(decoder.length, max(0, length - 1)))

    def save(self, path: Path) -> None:
        """Write tokens, keys and values into one file, whole or not at all.

        Raises:
            UsageError: the backend cannot save its cache.
        """
        arrays: dict[str, NDArray[Any]] = {
            "seal": np.frombuffer(self._manifest.seal.encode("ascii"), dtype=np.uint8),
            "tokens": np.array(self._tokens, dtype=np.int64),
        }
        for role, decoder in self._decoders().items():
            for i, (key, value) in enumerate(_stored(decoder).read_cache()):
                arrays[f"{role}.{i}.key"], arrays[f"{role}.{i}.value"] = key, value
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Read back what `save` wrote.

        Raises:
            BundleError: the file is damaged, or belongs to another bundle.
            UsageError: the backend cannot restore a cache.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            seal = arrays["seal"].tobytes().decode("ascii")
            tokens = [int(token) for token in arrays["tokens"]]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise BundleError(f"{path} is no saved cache: {error}") from error
        if seal != self._manifest.seal:
            raise BundleError(
                f"{path} was saved with another bundle",
                hint="read the text again instead; keys and values fit only the models that made them",
            )
        layers = {
            role: _layers(arrays, role, self._manifest, str(path)) for role in self._decoders()
        }
        self.clear()
        for role, decoder in self._decoders().items():
            length = layers[role][0][0].shape[2]
            if length > len(tokens):
                raise BundleError(f"{path} is damaged: it holds keys of more tokens than it lists")
            _stored(decoder).write_cache(layers[role], length)
        self._tokens = tokens

    def _decoders(self) -> dict[str, Decoder]:
        decoders = {"target": self.target}
        return decoders if self.draft is None else {**decoders, "draft": self.draft}


def common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return how many leading tokens are the same."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return i
    return min(len(ours), len(theirs))


def _stored(decoder: Decoder) -> StoredDecoder:
    if not isinstance(decoder, StoredDecoder):
        raise UsageError("this backend cannot save and restore its cache")
    return decoder


def _layers(
    arrays: Mapping[str, NDArray[Any]], role: str, manifest: Manifest, where: str
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return a model's keys and values [1, Hkv, length, D], checked against the manifest."""
    entry = manifest.models.target if role == "target" else manifest.models.draft
    assert entry is not None, "there is a decoder of this model"
    layers = []
    length = None
    for i, (heads, size) in enumerate(entry.kv_shapes):
        pair = []
        for kind in ("key", "value"):
            array = arrays.get(f"{role}.{i}.{kind}")
            if (
                array is None
                or array.dtype != np.dtype(entry.cache_dtype)
                or array.ndim != 4
                or (*array.shape[:2], array.shape[3]) != (1, heads, size)
                or length not in (None, array.shape[2])
                or array.shape[2] > manifest.capacity
                or not np.isfinite(array).all()
            ):
                raise BundleError(f"{where} is damaged: {role}.{i}.{kind} does not fit")
            length = array.shape[2]
            pair.append(array)
        layers.append((pair[0], pair[1]))
    return layers
