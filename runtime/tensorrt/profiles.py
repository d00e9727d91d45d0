"""Optimisation profiles: the widths that an engine is optimised for.

A decoder runs at three kinds of width: one token while drafting, a verified block, a chunk of the
prompt. Each is a profile of the same engine. A width that fits two profiles uses the narrower one,
which comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: the range of every dynamic dimension.

    Attributes:
        name: its purpose.
        low: smallest width.
        best: the width to optimise for.
        high: largest width.
    """

    name: str
    low: int
    best: int
    high: int

    def shapes(
        self, shape: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return (min, opt, max) of an input whose dynamic dimensions are -1."""
        low, best, high = (
            tuple(width if size == -1 else size for size in shape)
            for width in (self.low, self.best, self.high)
        )
        return low, best, high

    def __str__(self) -> str:
        return f"{self.name} {self.low}..{self.high}, best at {self.best}"


def target_profiles(num_draft_tokens: int, prefill_chunk: int) -> tuple[Profile, ...]:
    """Return the profiles of a target: blocks of up to `num_draft_tokens` + 1, and chunks of a prompt.

    Single tokens use the verify profile. A profile of their own would have faster attention and a
    second
    copy of all weights: TensorRT-RTX 1.7 stores them twice as soon as a width is fixed.
    """
    block = num_draft_tokens + 1
    chunk = max(prefill_chunk, block)
    return (Profile("verify", 1, block, block), Profile("prefill", 1, chunk, chunk))


def draft_profiles(num_draft_tokens: int, prefill_chunk: int) -> tuple[Profile, ...]:
    """Return the profiles of a draft: single tokens, then those of the target.

    A draft decodes one token at a time and its weights are small, so the second copy pays.
    """
    return (Profile("decode", 1, 1, 1), *target_profiles(num_draft_tokens, prefill_chunk))


def arbiter_profiles(num_draft_tokens: int, capacity: int) -> tuple[Profile, ...]:
    """Return the arbiter's profile: blocks of up to 64 drafted tokens, or the capacity if that is less.

    The graph is small, so room for the longest draft costs nothing.
    """
    longest = min(max(num_draft_tokens, LONGEST_DRAFT), capacity)
    return (Profile("block", 1, max(1, min(num_draft_tokens, longest)), longest),)


LONGEST_DRAFT = 64
"""The most draft tokens a round that cospec-export and cospec-run accept."""
