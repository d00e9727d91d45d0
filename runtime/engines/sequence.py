"""Common parts of all backends: the sizes of an engine, and the length of a cache."""

from __future__ import annotations

from ...errors import PromptError
from .protocol import GraphShape


class ShapedEngine:
    """The sizes of an engine, from its graph's shape."""

    shape: GraphShape

    @property
    def capacity(self) -> int:
        """Tokens that a decoder's cache can hold."""
        return self.shape.capacity

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.shape.vocab_size


class CachedSequence:
    """The used length of a decoder's cache."""

    def __init__(self, shape: GraphShape) -> None:
        self._shape = shape
        self._length = 0

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold."""
        return self._shape.capacity

    @property
    def length(self) -> int:
        """Tokens that the cache holds now."""
        return self._length

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on; O(1)."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate a cache of {self._length} tokens to {length}")
        self._length = length

    def _ensure_room(self, count: int) -> None:
        """Refuse tokens that do not fit.

        Raises:
            PromptError: names both sizes.
        """
        if self._length + count > self._shape.capacity:
            raise PromptError(
                f"{self._length} + {count} tokens do not fit a cache of {self._shape.capacity}",
                hint="shorten the prompt, or export again with a larger --capacity",
            )


def fetched(outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a step fetches for `outputs`.

    `logsumexp` whether asked for or not: it is finite exactly when the row's logits are usable.
    """
    return tuple(dict.fromkeys(("token", "logsumexp", *outputs)))
