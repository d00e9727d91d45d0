"""Which threshold is chosen from a curve, and what its bound means."""

from __future__ import annotations

import pytest

from cospec.calibration.arbiter.threshold import (
    Point,
    fastest_with_gain,
    fastest_without_loss,
    finer_thresholds,
)
from cospec.calibration.quality.statistics import difference_bound


def flags(right: int, n: int = 1000) -> list[bool]:
    return [i < right for i in range(n)]


def test_the_fastest_that_keeps_three_quarters_of_the_gain():
    curve = [Point(0.1, flags(870), 11.0), Point(0.2, flags(876), 12.0), Point(0.9, flags(900), 13)]
    assert fastest_with_gain(curve, flags(800)).threshold == 0.2  # the bar is at 875
    assert fastest_with_gain(curve, flags(770)).threshold == 0.1  # at 867.5
    assert fastest_with_gain(curve, flags(890)).threshold == 0.9  # at 897.5


def test_without_a_gain_the_most_accurate_and_among_equals_the_fastest():
    curve = [Point(0.1, flags(800), 11.0), Point(0.5, flags(850), 12), Point(0.9, flags(850), 13)]
    assert fastest_with_gain(curve, flags(850)).threshold == 0.5


def test_the_fastest_must_not_lose_to_the_target():
    target = flags(850)
    curve = [Point(0.1, flags(800), 10.0), Point(0.3, flags(870), 12), Point(0.8, flags(900), 13)]
    chosen = fastest_without_loss(curve, target)
    assert chosen is not None
    assert chosen.threshold == 0.3
    assert fastest_without_loss(curve[:1], target) is None


def test_a_few_items_that_all_got_wrong_prove_nothing():
    nothing_right = Point(0.1, flags(0, 4), 10.0)
    assert fastest_without_loss([nothing_right], flags(0, 4)) is None


def test_finer_thresholds_lie_below_each_of_the_two_that_would_be_chosen():
    curve = [Point(0.2, flags(800), 10.0), Point(0.3, flags(870), 12), Point(0.8, flags(900), 13)]
    assert finer_thresholds(curve, flags(850)) == [0.225, 0.25, 0.275, 0.425, 0.55, 0.675]
    assert finer_thresholds(curve[2:], flags(850)) == [0.2, 0.4, 0.6]
    # None is safe; the most accurate is the only one.
    assert finer_thresholds(curve[:1], flags(850)) == [0.05, 0.1, 0.15]


def test_the_bound_is_paired():
    # 40 gained, 20 lost of 1000, and half an item in each of the four cells.
    ours = [True] * 40 + [False] * 20 + [True] * 940
    theirs = [False] * 40 + [True] * 20 + [True] * 940
    mean = 20 / 1002
    deviation = ((61 / 1002 - mean**2) / 1002) ** 0.5
    assert difference_bound(ours, theirs) == pytest.approx(mean - 1.6449 * deviation)
    assert -0.005 < difference_bound(ours, ours) < 0
