"""The KV caches of a session, and which tokens they hold.

A prompt that begins like the last text is read only from where the two differ: the next turn of a
conversation, an edited question after the same instructions, a rewind to any point. A cache that was
saved to a file is accepted only by the bundle that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...errors import UsageError
from ..bundle.manifest import Manifest
from ..engines.protocol import Decoder, StoredDecoder
from .saved_cache import Role, read_cache, write_cache


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
        for decoder in self.decoders().values():
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
        for decoder in self.decoders().values():
            decoder.truncate(0)

    def cut(self, length: int) -> None:
        """Drop everything after the first `length` tokens of the text."""
        del self._tokens[length:]
        for decoder in self.decoders().values():
            decoder.truncate(min(decoder.length, max(0, length - 1)))

    def save(self, path: Path) -> None:
        """Write tokens, keys and values into one file, whole or not at all.

        Raises:
            UsageError: the backend cannot save its cache.
            ResourceError: the file cannot be written.
        """
        models = {role: _stored(each).read_cache() for role, each in self.decoders().items()}
        write_cache(path, self._manifest, self._tokens, models)

    def restore(self, path: Path) -> None:
        """Read back what `save` wrote; a model that the file lacks reads the text again.

        Raises:
            BundleError: the file is damaged, or belongs to another bundle.
            UsageError: the backend cannot restore a cache.
        """
        stored = {role: _stored(each) for role, each in self.decoders().items()}
        tokens, models = read_cache(path, self._manifest)
        self.clear()
        with self.consistent():
            for role, decoder in stored.items():
                if role in models:
                    decoder.write_cache(models[role], models[role][0][0].shape[2])
            self._tokens = tokens

    def decoders(self) -> dict[Role, Decoder]:
        """Return the decoders by role."""
        decoders: dict[Role, Decoder] = {"target": self.target}
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
