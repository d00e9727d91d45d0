"""Which threshold is chosen from a curve, and what its bound means."""

from __future__ import annotations

import pytest

from cospec.calibration.threshold import (
    Point,
    difference_bound,
    fastest_with_gain,
    fastest_without_loss,
    finer_thresholds,
)


def flags(right: int, n: int = 1000) -> list[bool]:
    return [i < right for i in range(n)]


def test_the_fastest_that_keeps_three_quarters_of_the_gain():
    curve = [Point(0.1, flags(870), 3.6), Point(0.2, flags(876), 3.4), Point(0.9, flags(900), 2.9)]
    assert fastest_with_gain(curve, flags(800)).threshold == 0.2  # the bar is at 875
    assert fastest_with_gain(curve, flags(770)).threshold == 0.1  # at 867.5
    assert fastest_with_gain(curve, flags(890)).threshold == 0.9  # at 897.5


def test_without_a_gain_the_most_accurate_and_among_equals_the_fastest():
    curve = [Point(0.1, flags(800), 3.6), Point(0.5, flags(850), 3.0), Point(0.9, flags(850), 2.9)]
    assert fastest_with_gain(curve, flags(850)).threshold == 0.5


def test_the_fastest_must_not_lose_to_the_target():
    target = flags(850)
    curve = [Point(0.1, flags(800), 3.7), Point(0.3, flags(870), 3.4), Point(0.8, flags(900), 2.9)]
    chosen = fastest_without_loss(curve, target)
    assert chosen is not None
    assert chosen.threshold == 0.3
    assert fastest_without_loss(curve[:1], target) is None


def test_finer_thresholds_lie_below_the_fastest_safe_one():
    curve = [Point(0.2, flags(800), 3.7), Point(0.3, flags(870), 3.4), Point(0.8, flags(900), 2.9)]
    assert finer_thresholds(curve, flags(850)) == [0.225, 0.25, 0.275]
    assert finer_thresholds(curve[1:], flags(850)) == [0.075, 0.15, 0.225]
    assert finer_thresholds(curve[:1], flags(850)) == []


def test_the_bound_is_paired():
    # 40 gained, 20 lost of 1000: mean 0.02, standard error sqrt((0.06 - 0.0004) / 1000).
    ours = [True] * 40 + [False] * 20 + [True] * 940
    theirs = [False] * 40 + [True] * 20 + [True] * 940
    assert difference_bound(ours, theirs) == pytest.approx(0.02 - 1.6449 * 0.0596**0.5 / 1000**0.5)
    assert difference_bound(ours, ours) == 0
