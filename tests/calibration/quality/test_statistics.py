"""Intervals and paired tests against published values and brute force."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest

from cospec.calibration.quality.statistics import mcnemar, wilson_interval


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_interval(right, n, low, high):
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_stays_within_bounds():
    for n in (1, 2, 10, 2000):
        for right in (0, n // 3, n):
            low, high = wilson_interval(right, n)
            assert 0 <= low <= right / n <= high <= 1
            assert wilson_interval(n - right, n) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, 0) == (0, 1)


@pytest.mark.parametrize(("b", "c"), list(product(range(7), repeat=2)))
def test_mcnemar_counts_all_ways_a_fair_coin_could_fall(b, c):
    """Two-sided: every outcome at least as far from even as the one seen."""
    first = [True] * b + [False] * c + [True, False] * 5
    second = [False] * b + [True] * c + [True, False] * 5
    n = b + c
    outcomes = [sum(coins) for coins in product((0, 1), repeat=n)]
    extreme = sum(abs(2 * heads - n) >= abs(b - c) for heads in outcomes)
    assert mcnemar(first, second) == pytest.approx(float(Fraction(extreme, len(outcomes))))
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_of_many_items_neither_overflows_nor_vanishes():
    """The premise's own figures: 94 items gained and 20 lost, z = 6.9."""
    p = mcnemar([True] * 94 + [False] * 20, [False] * 94 + [True] * 20)
    assert 1e-13 < p < 1e-11
    assert mcnemar([True] * 5000, [False] * 5000) == 0.0
    assert mcnemar([True] * 2500 + [False] * 2500, [False] * 2500 + [True] * 2500) == 1.0
