"""Which combinations are timed, how often, and which one wins."""

from __future__ import annotations

from itertools import chain, repeat

from cospec.calibration.weights import format_speed as speed
from cospec.calibration.weights.format_speed import Turn, most_turns, time_combinations


def test_the_fastest_counts_by_its_median(monkeypatch):
    """A single lucky time wins nothing, and only the leading targets meet every draft."""
    rates = {
        ("fp16", "fp16"): repeat(10.0),
        ("int8", "int8"): repeat(30.0),
        ("int8", "fp16"): repeat(25.0),
        ("int8", "int4"): chain([90.0], repeat(5.0)),
        ("int4", "int4"): repeat(20.0),
        ("int4", "int8"): repeat(31.0),
        ("int4", "fp16"): repeat(1.0),
    }
    turns = []

    def take_turn(target, draft, number):
        turns.append((target, draft, number))
        return Turn(next(rates[target, draft]), 1.0, None, 0.0)

    monkeypatch.setattr(speed, "ROUNDS", 5)
    names = ["fp16", "int8", "int4"]
    ranked = time_combinations(names, names, take_turn)
    assert (ranked[0].target, ranked[0].draft) == ("int4", "int8")
    assert [len(combination.turns) for combination in ranked] == [5, 5, 5, 5, 1, 1, 1]
    assert ("fp16", "int8") not in {(each.target, each.draft) for each in ranked}
    assert len(set(turns)) == len(turns) == most_turns(3, 3)
    assert turns[7:11] == [(each[0], each[1], 1) for each in turns[7:11]], "they take turns"
