"""The KV caches of a session, and which tokens they hold.

A prompt that begins as the last text did is not read again up to where the two part: the next turn of
a conversation, an edited question behind the same instructions, a rewind to any point. Kept on disk,
a cache is read back only for the bundle that wrote it.
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
from ..engines.protocol import Decoder, StoredDecoder


class Caches:
    """The decoders of target and draft, which follow one text.

    Args:
        target: its decoder.
        draft: its decoder, or None.
        seal: fingerprint of the bundle, which a saved cache must carry.
    """

    def __init__(self, target: Decoder, draft: Decoder | None, seal: str) -> None:
        self.target = target
        self.draft = draft
        self._seal = seal
        self._tokens: list[int] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """The text that the caches follow; the target's holds all of it but the last token or so."""
        return tuple(self._tokens)

    def begin(self, tokens: list[int]) -> int:
        """Follow `tokens` from now on, a list that the caller goes on extending.

        Returns:
            How many of them the target has read already.
        """
        shared = _common_prefix(self._tokens, tokens[:-1])
        for decoder in self._decoders().values():
            decoder.truncate(min(decoder.length, shared))
        self._tokens = tokens
        return self.target.length

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """Forget everything if the body fails: what a failed round left behind is unknown."""
        try:
            yield
        except BaseException:  # Ctrl-C in mid-pass too
            self.clear()
            raise

    def clear(self) -> None:
        """Forget everything."""
        self._tokens = []
        for decoder in self._decoders().values():
            decoder.truncate(0)

    def cut(self, length: int) -> None:
        """Forget what lies behind the first `length` tokens of the text."""
        del self._tokens[length:]
        for decoder in self._decoders().values():
            decoder.truncate(min(decoder.length, max(0, length - 1)))

    def save(self, path: Path) -> None:
        """Write tokens, keys and values into one file, whole or not at all.

        Raises:
            UsageError: the backend cannot hand its cache out.
        """
        arrays: dict[str, NDArray[Any]] = {
            "seal": np.frombuffer(self._seal.encode("ascii"), dtype=np.uint8),
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
            UsageError: the backend cannot take a cache in.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            seal = arrays["seal"].tobytes().decode("ascii")
            tokens = [int(token) for token in arrays["tokens"]]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise BundleError(f"{path} is no saved cache: {error}") from error
        if seal != self._seal:
            raise BundleError(
                f"{path} was saved with another bundle",
                hint="read the text again instead; keys and values fit only the models that made them",
            )
        layers = {
            role: _layers(arrays, role, _stored(decoder), str(path))
            for role, decoder in self._decoders().items()
        }
        self.clear()
        for role, decoder in self._decoders().items():
            length = layers[role][0][0].shape[2]
            if length > len(tokens):
                raise BundleError(f"{path} holds keys of more tokens than it names")
            _stored(decoder).write_cache(layers[role], length)
        self._tokens = tokens

    def _decoders(self) -> dict[str, Decoder]:
        decoders = {"target": self.target}
        return decoders if self.draft is None else {**decoders, "draft": self.draft}


def _common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
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
    arrays: Mapping[str, NDArray[Any]], role: str, decoder: StoredDecoder, where: str
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return a decoder's keys and values, checked against its own shapes."""
    own = decoder.read_cache()
    layers = []
    length = None
    for i, (key, _) in enumerate(own):
        pair = []
        for kind in ("key", "value"):
            array = arrays.get(f"{role}.{i}.{kind}")
            if (
                array is None
                or array.dtype != key.dtype
                or array.ndim != 4
                or (array.shape[:2], array.shape[3]) != (key.shape[:2], key.shape[3])
                or length not in (None, array.shape[2])
                or array.shape[2] > decoder.capacity
                or not np.isfinite(array).all()
            ):
                raise BundleError(f"{where} is damaged: {role}.{i}.{kind} does not fit")
            length = array.shape[2]
            pair.append(array)
        layers.append((pair[0], pair[1]))
    return layers
