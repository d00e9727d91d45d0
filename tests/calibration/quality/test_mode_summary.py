"""Figures of modes from their answers, worked out by hand."""

from __future__ import annotations

import pytest

from cospec.calibration.quality.mode_summary import (
    Answer,
    either_right,
    paired_tests,
    resample_control,
    summarise,
    summarise_modes,
)
from cospec.calibration.quality.modes import parse_modes


def answer(correct: bool, tokens: int = 10, passes: int = 5, seconds: float = 1.0) -> Answer:
    return Answer(correct, tokens, passes, seconds, mismatches=4, overrides=1, truncated=False)


def test_rates_are_ratios_of_sums():
    figures = summarise(["a", None, "a"], [answer(True), answer(False, 40, 10, 3.0), answer(True)])
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["tokens_per_target_pass"] == 3
    assert figures["tokens_per_second"] == 12
    assert figures["seconds_per_item"] == pytest.approx(5 / 3)
    assert figures["override_rate"] == 0.25
    assert figures["kinds"] == {"a": {"accuracy": 1.0, "tokens_per_target_pass": 2.0, "n": 2}}


def test_strict_stands_in_for_the_target():
    answers = {
        "strict": [answer(True), answer(False), answer(False)],
        "draft": [answer(False), answer(True), answer(False)],
        "always-draft": [answer(True), answer(True), answer(False)],
    }
    modes = parse_modes(list(answers))
    found = summarise_modes(modes, answers, [None] * 3)
    with_target = summarise_modes(
        [*modes, *parse_modes(["target"])], {**answers, "target": answers["strict"]}, [None] * 3
    )
    assert found["mcnemar"] == with_target["mcnemar"] != {}
    assert found["oracle"] == with_target["oracle"] == {"accuracy": pytest.approx(2 / 3)}
    for name in ("draft", "always-draft"):
        assert found["modes"][name]["vs_target"] == with_target["modes"][name]["vs_target"]
    assert "vs_target" not in found["modes"]["strict"], "it is no comparison"


def test_the_oracle_is_right_where_either_alone_is():
    rows = {"target": [True, True, False, False], "draft": [True, False, True, False]}
    answers = {name: [answer(flag) for flag in flags] for name, flags in rows.items()}
    assert either_right(answers) == 0.75
    assert either_right({"target": answers["target"]}) is None
    assert paired_tests(parse_modes(["target", "draft"]), answers) == {}


def test_the_headroom_that_chance_gives():
    rows = {
        "target": [True, True, False, False],
        "draft": [True, False, True, True],
        "sample:0.7,1": [True, True, True, False],
        "sample:0.7,2": [False, True, False, False],
    }
    answers = {name: [answer(flag) for flag in flags] for name, flags in rows.items()}
    control = resample_control(parse_modes(list(rows)), answers)
    assert control is not None
    assert control["draft_headroom"] == 0.5  # two of four
    assert (
        control["greedy_headroom"] == 0.125
    )  # one of four with the first sample, none with the other
    assert control["sampled_headroom"] == 0.25  # either on three of four, alone on 3 and 1: mean 2
    assert resample_control(parse_modes(["target", "sample:0.7,1"]), answers) is None
