"""The two statistics that a comparison of right and wrong answers needs, exact, without scipy."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt

Z_95 = 1.959963984540054
"""The normal quantile that leaves 2.5 % on either side."""


def wilson_interval(right: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, 95 % unless told otherwise (Wilson, 1927)."""
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
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    p: float = 2 * tail / (1 << n)  # whole numbers: Python divides them without overflow
    return min(1.0, p)
