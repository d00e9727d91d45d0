"""The statistics that a comparison of right and wrong answers needs, without scipy."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt

Z_95 = 1.959963984540054
"""The normal quantile that leaves 2.5 % on either side."""

ONE_SIDED_95 = 1.6449
"""The normal quantile that leaves 5 % on one side."""


def wilson_interval(right: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, 95 % by default (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # Rounding must not exclude the share itself, which is a bound where all or none are right.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the two-sided p of the exact McNemar test (McNemar, 1947) on paired answers.

    Only items on which the two differ count; under the null hypothesis each is a fair coin.
    """
    only_first, only_second = _discordant(first, second)
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    p: float = 2 * tail / (1 << n)  # whole numbers: Python divides them without overflow
    return min(1.0, p)


def difference_bound(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the one-sided 95 % lower bound of the difference in accuracy, paired by item.

    Adjusted after Agresti and Min (2005): half an item in each of the four cells. Without that, a few
    items that both got wrong would have a difference of zero without any uncertainty.
    """
    gained, lost = _discordant(ours, theirs)
    n = len(ours) + 2
    mean = (gained - lost) / n
    variance = (gained + lost + 1) / n - mean**2
    return mean - ONE_SIDED_95 * sqrt(variance / n)


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """Count the items that only the first got right, and those that only the second did."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
