"""Drafting by lookup: what followed the last few tokens when they occurred before.

Prompt-lookup decoding (Saxena, 2023): free to propose, and right wherever text repeats itself, as in
summaries, code edits and answers that quote the question.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_NGRAM = 4
MIN_NGRAM = 2


class NgramDrafter:
    """Proposes what followed the latest earlier occurrence of the longest matching suffix.

    Args:
        max_ngram: longest suffix that is looked up.
        min_ngram: shortest; a single token matches too much to be worth a wider verify pass.
    """

    def __init__(self, max_ngram: int = MAX_NGRAM, min_ngram: int = MIN_NGRAM) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._followers: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return up to `count` tokens that followed the longest known suffix."""
        self._index(tokens)
        for size in self._sizes:
            start = self._followers.get(tuple(tokens[-size:]))
            if start is not None:
                return list(tokens[start : start + count])
        return []

    def _index(self, tokens: Sequence[int]) -> None:
        """Remember, for each n-gram, the position of the latest token that followed it."""
        if len(tokens) < self._indexed:  # the text slid, so positions changed
            self._followers.clear()
            self._indexed = 0
        for end in range(max(self._indexed, 1), len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._followers[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)
