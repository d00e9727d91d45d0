"""Which tokens a draft keeps: the most frequent ones of calibration texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...runtime.bundle.manifest import Manifest
from ..weights.texts import Text

HELD_OUT = 5
"""One text in this many is not counted but measured on."""


def split(texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
    """Return the texts to count, and the held-out ones: the last, which are not neighbours of the rest.

    Raises:
        UsageError: there is only one text.
    """
    held_out = max(1, len(texts) // HELD_OUT)
    if held_out == len(texts):
        raise UsageError(
            "the texts are too short to hold some out",
            hint="give a longer file, or more --items of tasks",
        )
    return list(texts[:-held_out]), list(texts[-held_out:])


def count(texts: Iterable[Text], vocab_size: int) -> NDArray[np.int64]:
    """Return how often each token occurs in the scored part of the texts, int64 [V]."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for text in texts:
        np.add.at(counts, np.asarray(text.tokens[text.scored_from :], dtype=np.int64), 1)
    return counts


def most_frequent(counts: NDArray[np.int64], size: int, manifest: Manifest) -> NDArray[np.int64]:
    """Return the ids of the tokens that are kept, int64 [size], ascending.

    The tokens that begin and end a text are always kept. Among equally frequent ones, the lowest ids
    are: most tokenizers number their tokens by the order of merging, which follows frequency.

    Args:
        counts: int64 [V], see `count`.
        size: number of tokens to keep.
        manifest: the bundle's.

    Raises:
        UsageError: the vocabulary has no more than `size`, or `size` is below what a summary row needs.
    """
    chosen = manifest.generation
    ends = {*chosen.eos_token_ids, chosen.bos_token_id}
    always = [token for token in ends if token is not None]
    low, high = max(manifest.summary_top, len(always)), len(counts) - 1
    if not low <= size <= high:
        raise UsageError(
            f"{size} tokens cannot be kept of a vocabulary of {len(counts)}",
            hint=f"give a --size from {low} to {high}",
        )
    first = np.zeros(len(counts), dtype=np.bool_)
    first[always] = True
    ranked = np.lexsort((-counts, ~first))  # stable: the lowest id first among equals
    return np.sort(ranked[:size])


def coverage(counts: NDArray[np.int64], kept: NDArray[np.int64]) -> float:
    """Return the share of counted tokens that are among the kept."""
    return float(counts[kept].sum() / counts.sum())
