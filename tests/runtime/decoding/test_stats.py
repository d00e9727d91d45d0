"""The counters of a generation, on rounds written by hand."""

from __future__ import annotations

import json

import pytest

from cospec.runtime.decoding import stats as stats_module
from cospec.runtime.decoding.loop import Round
from cospec.runtime.decoding.stats import GenerationStats

ROUNDS = [
    Round([1, 2, 3], ["agreed", "agreed", "target"], drafted=4, accepted=2, finish=None),
    Round([4], ["target"], drafted=3, accepted=0, finish=None),
    Round([5, 6, 7], ["agreed", "agreed", "bonus"], drafted=2, accepted=2, finish=None),
    Round([8], ["target"], drafted=0, accepted=0, finish=None),
    Round([9], ["agreed"], drafted=1, accepted=1, finish="eos"),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `perf_counter` will report, one a call."""
    times: list[float] = []
    monkeypatch.setattr(stats_module, "perf_counter", lambda: times.pop(0))
    return times


def test_counters():
    stats = GenerationStats(num_prompt_tokens=7)
    for round_ in ROUNDS:
        stats.add(round_)
    found = stats.to_json()
    assert found == json.loads(json.dumps(found))
    expected = {
        "num_prompt_tokens": 7,
        "num_generated_tokens": 9,
        "num_target_passes": 5,
        "num_drafts": 4,
        "num_draft_tokens": 10,
        "num_accepted_tokens": 5,
        "num_draft_tokens_per_pos": [4, 3, 2, 1],
        "num_accepted_tokens_per_pos": [3, 2, 0, 0],
        "acceptance_rate_per_pos": [3 / 4, 2 / 3, 0, 0],
        "draft_acceptance_rate": 0.5,
        "mean_acceptance_length": 1 + 5 / 4,
        "tokens_per_target_pass": 9 / 5,
    }
    assert {name: found[name] for name in expected} == expected


def test_times(clock):
    clock += [10.5, 11.0, 12.0, 12.5, 13.5]
    stats = GenerationStats(num_prompt_tokens=7, _start=10.0)
    for round_ in ROUNDS:
        stats.add(round_)
    assert clock == []
    assert stats.ttft == 0.5
    assert stats.decode_seconds == 3.0
    assert stats.tpot == 3.0 / 6, "the first round's three tokens came before the clock started"


def test_figures_without_a_base_are_none_and_not_zero():
    stats = GenerationStats(num_prompt_tokens=7)
    assert stats.tokens_per_target_pass is None
    stats.add(ROUNDS[3])
    assert stats.tokens_per_target_pass == 1
    assert stats.tpot is None, "one round has no time between rounds"
    assert stats.draft_acceptance_rate is None
    assert stats.mean_acceptance_length is None
    assert stats.to_json()["acceptance_rate_per_pos"] == []
