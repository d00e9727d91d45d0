"""The calibration of a draft's confidence, against what is most likely and against plain counting."""

from __future__ import annotations

import math
import random

import pytest

from cospec.runtime.drafting.confidence import SHIFT_PRIOR, Calibration


def test_it_believes_the_draft_until_it_has_seen_better():
    calibration = Calibration(1.0)
    assert calibration.acceptance(0.97) == pytest.approx(0.95)
    assert calibration.acceptance(1.0) == pytest.approx(0.95)
    assert calibration.acceptance(0.0) == pytest.approx(0.05)
    for _ in range(200):
        calibration.record([0.97], 0)
    assert calibration.acceptance(0.97) < 0.01


def test_a_modest_draft_is_found_out_within_a_few_tokens_at_every_confidence():
    calibration = Calibration(1.0)
    for _ in range(3):
        calibration.record([0.05, 0.15, 0.05], 3)
    assert calibration.acceptance(0.05) > 0.9
    assert calibration.acceptance(0.55) > 0.95, "of which none was seen"


def test_a_draft_that_is_too_sure_of_itself_is_found_out_too():
    calibration = Calibration(1.0)
    for _ in range(10):
        calibration.record([0.95], 0)
    assert calibration.acceptance(0.95) < 0.1
    assert calibration.acceptance(0.45) < 0.05, "of which none was seen"


@pytest.mark.parametrize("seed", range(5))
def test_the_shift_is_the_most_likely_one(seed):
    rng = random.Random(seed)
    calibration, seen = Calibration(1.0), []
    for _ in range(100):
        confidence, shift = (rng.randrange(10) + 0.5) / 10, 1.5
        odds = math.log(confidence / (1 - confidence))
        seen.append((odds, rng.random() < 1 / (1 + math.exp(-odds - shift))))
        calibration.record([confidence], int(seen[-1][1]))

    def log_likelihood(shift: float) -> float:
        # The prior is half a token that was accepted and half a token that was not, both unsure.
        half = SHIFT_PRIOR / 2
        total = -half * math.log1p(math.exp(-shift)) - half * math.log1p(math.exp(shift))
        for odds, accepted in seen:
            total -= math.log1p(math.exp(-(odds + shift) if accepted else odds + shift))
        return total

    best = max((i / 1000 for i in range(-6000, 6000)), key=log_likelihood)
    assert calibration._shift == pytest.approx(best, abs=0.02)


def test_what_was_seen_of_a_confidence_outweighs_what_holds_for_all():
    """A draft that is right where it is unsure, and wrong where it is sure."""
    calibration = Calibration(1.0)
    for _ in range(300):
        calibration.record([0.25], 1)
        calibration.record([0.75], 0)
    assert calibration.acceptance(0.25) > 0.95
    assert calibration.acceptance(0.75) < 0.05


def test_a_block_counts_as_far_as_it_was_accepted():
    """Of three tokens that were reached, two stand."""
    calibration = Calibration(1.0)
    calibration.record([0.15, 0.55, 0.95], 2)
    single = Calibration(1.0)
    single.record([0.15], 1)
    single.record([0.55], 1)
    single.record([0.95], 0)
    assert calibration._accepted == single._accepted
    assert calibration._reached == single._reached


def test_older_tokens_weigh_less():
    calibration = Calibration(0.9)
    for _ in range(100):
        calibration.record([0.5], 0)
    for _ in range(50):
        calibration.record([0.5], 1)
    assert calibration.acceptance(0.5) > 0.9
