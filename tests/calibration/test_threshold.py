"""Which threshold is chosen from a curve, and what its bound means."""

from __future__ import annotations

import pytest

from cospec.calibration.threshold import (
    Point,
    difference_bound,
    fastest_near_best,
    fastest_without_loss,
)


def flags(right: int, n: int = 1000) -> list[bool]:
    return [i < right for i in range(n)]


def test_the_fastest_of_those_that_cannot_be_told_from_the_best():
    # 900 against 895 of 1000, all 5 lost: the error is 0.0022, the difference 0.005. Too much.
    curve = [Point(0.2, flags(895), 3.5), Point(0.5, flags(900), 3.1), Point(0.8, flags(900), 2.9)]
    assert fastest_near_best(curve).threshold == 0.5
    # The same difference as 25 gained and 30 lost: its error is 0.0074, so speed decides.
    mixed = [*flags(870, 900), *([True] * 25), *([False] * 75)]
    assert sum(mixed) == 895
    assert fastest_near_best([Point(0.2, mixed, 3.5), *curve[1:]]).threshold == 0.2


def test_the_fastest_must_not_lose_to_the_target():
    target = flags(850)
    curve = [Point(0.1, flags(800), 3.7), Point(0.3, flags(870), 3.4), Point(0.8, flags(900), 2.9)]
    chosen = fastest_without_loss(curve, target)
    assert chosen is not None
    assert chosen.threshold == 0.3
    assert fastest_without_loss(curve[:1], target) is None


def test_the_bound_is_paired():
    # 40 gained, 20 lost of 1000: mean 0.02, standard error sqrt((0.06 - 0.0004) / 1000).
    ours = [True] * 40 + [False] * 20 + [True] * 940
    theirs = [False] * 40 + [True] * 20 + [True] * 940
    assert difference_bound(ours, theirs) == pytest.approx(0.02 - 1.6449 * 0.0596**0.5 / 1000**0.5)
    assert difference_bound(ours, ours) == 0
