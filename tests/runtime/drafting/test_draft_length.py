"""The controller: the best draft length against an exhaustive search, and never slower than plain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedDecoder, agreeing, hashed, reference_decode

from cospec.runtime.decoding.loop import Limits, decode
from cospec.runtime.drafting.draft_length import (
    Costs,
    DraftLengthController,
    best_length,
    expected_tokens,
    pays_to_go_on,
)
from cospec.runtime.drafting.draft_model import ModelDrafter

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=5)
seconds = st.floats(1e-4, 1)


def tokens_by_enumeration(acceptance: list[float]) -> float:
    """Every way a round can go, with its probability: the first rejection is at position i."""
    total, reached = 0.0, 1.0
    for i, probability in enumerate(acceptance):
        total += reached * (1 - probability) * (i + 1)
        reached *= probability
    return total + reached * (len(acceptance) + 1)


@given(acceptance=probabilities)
def test_expected_tokens_equal_the_enumeration(acceptance):
    expected = expected_tokens(acceptance)
    for k in range(len(acceptance) + 1):
        assert expected[k] == pytest.approx(tokens_by_enumeration(acceptance[:k]))


@given(acceptance=probabilities, draft=seconds, verify=st.lists(seconds, min_size=6, max_size=6))
def test_the_length_is_the_best_of_all(acceptance, draft, verify):
    costs = Costs(draft, verify)
    rates = [
        tokens_by_enumeration(acceptance[:k]) / (k * draft + verify[k])
        for k in range(len(acceptance) + 1)
    ]
    chosen = best_length(costs, acceptance, margin=1)
    assert rates[chosen] == pytest.approx(max(rates))


def test_a_gain_within_the_margin_is_not_worth_it():
    costs = Costs(0.5, [1.0, 1.0])
    assert best_length(costs, [0.51]) == 0  # 1.51 tokens for 1.5: 0.7 % more
    assert best_length(costs, [0.6]) == 1


class Machine:
    """Plays rounds of a pair with a known acceptance and known costs."""

    def __init__(self, acceptance: float, draft: float, verify: list[float], seed: int = 0) -> None:
        self.acceptance, self.costs = acceptance, Costs(draft, verify)
        self.rng = random.Random(seed)
        self.seconds = 0.0
        self.tokens = 0
        self.drafted: list[int] = []

    def play(self, controller: DraftLengthController, tokens: int) -> float:
        """Decode so many tokens and return the seconds of each."""
        seconds, done = self.seconds, self.tokens
        while self.tokens - done < tokens:
            k = controller.length()
            accepted = 0
            while accepted < k and self.rng.random() < self.acceptance:
                accepted += 1
            draft, verify = k * self.costs.draft_step, self.costs.verify[k]
            controller.record(k, accepted, draft, k + 1, verify)
            self.seconds += draft + verify
            self.tokens += accepted + 1
            self.drafted.append(k)
        return (self.seconds - seconds) / (self.tokens - done)

    def best(self, longest: int) -> float:
        """Return the seconds a token of the best fixed length."""
        expected = expected_tokens([self.acceptance] * longest)
        return min(self.costs.of_round(k) / expected[k] for k in range(longest + 1))


@pytest.mark.parametrize("acceptance", [0.05, 0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("draft", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("slope", [0.0, 0.15, 1.0])
def test_it_is_nearly_as_fast_as_the_best_fixed_length(acceptance, draft, slope):
    verify = [1 + slope * w for w in range(5)]
    machine = Machine(acceptance, draft, verify)
    per_token = machine.play(DraftLengthController(machine.costs), 4000)
    assert per_token <= 1.06 * machine.best(4)
    assert per_token <= 1.03 * verify[0], "slower than the target alone"


def test_it_comes_back_when_the_draft_becomes_good():
    machine = Machine(0.05, 0.3, [1.0, 1.05, 1.1, 1.15, 1.2])
    controller = DraftLengthController(machine.costs)
    machine.play(controller, 1000)
    assert machine.drafted[-200:].count(0) > 190
    machine.acceptance = 0.95
    machine.drafted.clear()
    machine.play(controller, 3000)
    assert machine.drafted[-1] == 4
    assert next(i for i, k in enumerate(machine.drafted) if k == 4) <= 100


CONTROLLED_PAIR = {
    "fp32": (2.6, [23.2, 25.2, 24.5, 27.2, 26.7, 28.2, 33.0, 38.9, 43.0]),
    "int8": (1.2, [7.6, 8.1, 8.6, 10.1, 12.1, 12.6, 14.0, 15.6, 17.0]),
}
"""Milliseconds of a draft step and of verify passes, as measured once on two cores."""


@pytest.mark.parametrize("weights", sorted(CONTROLLED_PAIR))
def test_an_unrelated_draft_costs_next_to_nothing(weights):
    draft, verify = CONTROLLED_PAIR[weights]
    machines = [Machine(0.0, draft, verify, seed) for seed in range(10)]
    shares = [
        verify[0] / machine.play(DraftLengthController(machine.costs), 300) for machine in machines
    ]
    assert min(shares) >= 0.98


@pytest.mark.parametrize("weights", sorted(CONTROLLED_PAIR))
@pytest.mark.parametrize("acceptance", [0.2, 0.4, 0.6, 0.8, 0.95])
def test_every_agreement_is_served_nearly_as_the_best_length_would(weights, acceptance):
    draft, verify = CONTROLLED_PAIR[weights]
    machines = [Machine(acceptance, draft, verify, seed) for seed in range(20)]
    shares = [
        machine.best(8) / machine.play(DraftLengthController(machine.costs), 500)
        for machine in machines
    ]
    assert sum(shares) / len(shares) >= 0.96


@pytest.mark.parametrize("weights", sorted(CONTROLLED_PAIR))
def test_it_recovers_within_fifty_rounds(weights):
    draft, verify = CONTROLLED_PAIR[weights]
    late = 0
    for seed in range(20):
        machine = Machine(0.0, draft, verify, seed)
        controller = DraftLengthController(machine.costs)
        machine.play(controller, 300)
        machine.acceptance = 0.95
        machine.drafted.clear()
        machine.play(controller, 400)
        late += next(i for i, k in enumerate(machine.drafted) if k >= 3) > 50
    assert late <= 1  # of 20: a try can fail by chance


def test_a_slow_pass_now_and_then_changes_nothing():
    machine = Machine(0.9, 0.05, [1.0, 1.02, 1.04, 1.06, 1.08])
    controller = DraftLengthController(machine.costs)
    machine.play(controller, 200)
    machine.drafted.clear()
    for _ in range(3):
        controller.record(4, 4, 0.2, 5, 60.0)
    machine.play(controller, 40)
    assert 0 not in machine.drafted


class Fixed(DraftLengthController):
    """Drafts as many tokens as a list says, whatever was measured."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(Costs(0.1, [1.0] * 5))
        self.lengths = lengths
        self.rounds: list[tuple[int, int, int]] = []

    def length(self) -> int:
        return self.lengths[len(self.rounds) % len(self.lengths)]

    def record(self, drafted, accepted, draft_seconds, width, verify_seconds):
        assert draft_seconds >= 0
        assert verify_seconds > 0
        self.rounds.append((drafted, accepted, width))


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 50))
def test_no_sequence_of_lengths_changes_the_output(lengths, seed):
    choose = hashed(seed, 50)
    target = ScriptedDecoder(choose)
    drafter = ModelDrafter(ScriptedDecoder(agreeing(choose, hashed(seed + 1, 50), 70)), chunk=8)
    controller = Fixed(lengths)
    prompt = [1, 2, 3]
    tokens = list(prompt)
    limits = Limits(max_tokens=40, eos_token_ids=(), num_draft_tokens=4, prefill_chunk=8)
    rounds = list(decode(target, drafter, tokens, limits, controller=controller))
    reference = reference_decode(choose, prompt, max_tokens=40, eos_token_ids=(), capacity=1000)
    assert tokens[len(prompt) :] == reference[0]
    assert [each[:2] for each in controller.rounds] == [(r.drafted, r.accepted) for r in rounds]
    assert [width for *_, width in controller.rounds[1:]] == [r.drafted + 1 for r in rounds[1:]]
    wanted = [min(lengths[i % len(lengths)], 4) for i in range(len(rounds))]
    assert all(r.drafted <= k for r, k in zip(rounds, wanted, strict=True))


def test_going_on_pays_exactly_where_some_longer_block_does():
    costs = Costs(1.0, [10, 10, 10, 30, 31, 31, 31])
    for reached in (0.05, 0.3, 0.6, 1.0):
        for drafted in range(7):
            gains = [
                sum(reached * 0.9**j for j in range(1, more + 1))
                - 0.1 * (costs.of_round(drafted + more) - costs.of_round(drafted))
                for more in range(1, 7 - drafted)
            ]
            assert pays_to_go_on(costs, drafted, reached, 0.9, 0.1) == any(g > 0 for g in gains)


def test_confidence_that_means_something_is_worth_more_than_any_fixed_length():
    draft, verify = CONTROLLED_PAIR["fp32"]

    def speed(hears: bool, seed: int) -> float:
        rng, controller = random.Random(seed), DraftLengthController(Costs(draft, verify))
        seconds = tokens = 0.0
        for _ in range(500):
            k, accepted = controller.length(), []
            while len(accepted) < k:
                confidence = 0.98 if rng.random() < 0.75 else 0.3
                accepted.append(rng.random() < confidence)
                if hears and not controller.drafted(confidence):
                    break
            right = [*accepted, False].index(False)
            costs = (len(accepted) * draft, verify[len(accepted)])
            controller.record(len(accepted), right, costs[0], len(accepted) + 1, costs[1])
            seconds += sum(costs)
            tokens += right + 1
        return tokens / seconds

    heard, deaf = (sum(speed(hears, seed) for seed in range(8)) for hears in (True, False))
    assert heard > 1.04 * deaf


def test_rounds_without_room_to_draft_teach_nothing_and_break_nothing():
    """As of generations of one token each: when drafting begins, no token has been judged yet."""
    draft, verify = CONTROLLED_PAIR["fp32"]
    controller = DraftLengthController(Costs(draft, verify))
    for _ in range(5):
        controller.length()
        controller.record(0, 0, 0.0, 1, verify[0])
    assert controller.length() > 0
    assert controller.drafted(0.9)
    controller.record(1, 1, draft, 2, verify[1])
    assert controller.acceptance[0] > 0.5


@pytest.mark.parametrize("weights", sorted(CONTROLLED_PAIR))
@pytest.mark.parametrize("confidence", [0.05, 0.35, 0.65])
def test_a_draft_that_is_always_right_and_never_sure_is_found_out_at_once(weights, confidence):
    draft, verify = CONTROLLED_PAIR[weights]
    controller, seconds, tokens = DraftLengthController(Costs(draft, verify)), 0.0, 0
    while tokens < 64:
        most, drafted = controller.length(), 0
        while drafted < most:
            drafted += 1
            if not controller.drafted(confidence):
                break
        controller.record(drafted, drafted, drafted * draft, drafted + 1, verify[drafted])
        seconds += drafted * draft + verify[drafted]
        tokens += drafted + 1
    best = min((k * draft + verify[k]) / (k + 1) for k in range(9))
    assert best / (seconds / tokens) > 0.9
