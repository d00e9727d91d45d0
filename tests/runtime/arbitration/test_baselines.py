"""Each baseline's rule against its formula, on blocks made of explicit distributions."""

from __future__ import annotations

import numpy as np
import pytest
from arbiters import TOP
from arbiters import block_of_distributions as block_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cospec.errors import UsageError
from cospec.runtime.arbitration.baselines import (
    AlwaysDraft,
    FlyDeferred,
    RandomArbiter,
    RelaxedTopK,
    StaticEnsemble,
    TypicalAcceptance,
    baseline,
)
from cospec.runtime.arbitration.protocol import Block
from cospec.runtime.engines.protocol import StepOutput

VOCAB = 12


def only(block: Block, arbiter: object) -> Block:
    """The block with nothing but what the arbiter asked for, as the runtime gives it."""

    def cut(output: StepOutput, names: tuple[str, ...]) -> StepOutput:
        return StepOutput(output.token, **{name: getattr(output, name) for name in names})

    return Block(
        block.drafted,
        block.matches,
        block.mismatches,
        block.run,
        block.position,
        cut(block.draft, arbiter.draft_outputs),  # type: ignore[attr-defined]
        cut(block.target, arbiter.target_outputs),  # type: ignore[attr-defined]
    )


@st.composite
def distributions(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two models' distributions [k, V], sharp or flat, that often agree."""
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    k, sharpness = draw(st.integers(1, 10)), draw(st.sampled_from([0.5, 2.0, 5.0]))
    target = rng.normal(size=(k, VOCAB)) * sharpness
    draft = target + rng.normal(size=(k, VOCAB)) * draw(st.sampled_from([0.0, 1.0, 4.0]))
    return _softmax(target), _softmax(draft)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@given(pair=distributions())
@settings(max_examples=100, deadline=None)
def test_every_rule_is_its_formula(pair):
    target, draft = pair
    block = block_of(target, draft)
    k = len(target)
    places = np.arange(k)
    d, t = draft.argmax(axis=1), target.argmax(axis=1)
    p_d, p_t = target[places, d], target[places, t]
    entropy = -(target * np.log(target)).sum(axis=1)
    top3 = np.sort(target, axis=1)[:, -3:]
    entropy3 = -(top3 * np.log(top3)).sum(axis=1)
    rank = (target > p_d[:, None]).sum(axis=1)
    in_reach = np.array([draft[i, t[i]] >= np.sort(draft[i])[-TOP] for i in places])
    mixed_d = 0.7 * p_d + 0.3 * draft[places, d]
    mixed_t = 0.7 * p_t + 0.3 * draft[places, t] * in_reach
    follow = [i + 3 <= k and all(d[j] == t[j] for j in (i + 1, i + 2)) for i in range(k)]
    cases = [
        (AlwaysDraft(), np.ones(k, dtype=bool)),
        (TypicalAcceptance(0.3, 0.09), p_d > np.minimum(0.3, 0.09 * np.exp(-entropy))),
        (RelaxedTopK(3, 0.2), (rank < 3) & (p_d >= p_t - 0.2)),
        (FlyDeferred(3, 0.3), np.array(follow) & (entropy3 >= 0.3)),
        (StaticEnsemble(0.7), mixed_d > mixed_t),
    ]
    for arbiter, expected in cases:
        scores = arbiter.score(only(block, arbiter))
        assert scores.dtype == np.float32
        assert scores.shape == (k,)
        places_that_count = ~block.matches  # elsewhere the two candidates are one
        found = scores.astype(bool)[places_that_count]
        assert found.tolist() == expected[places_that_count].tolist(), arbiter


def test_the_ends_of_the_ensemble_are_the_two_models():
    rng = np.random.default_rng(0)
    block = block_of(_softmax(rng.normal(size=(40, VOCAB))), _softmax(rng.normal(size=(40, VOCAB))))
    mismatch = ~block.matches
    assert StaticEnsemble(0.0).score(block)[mismatch].all()
    assert not StaticEnsemble(1.0).score(block)[mismatch].any()


def test_a_window_wider_than_the_block_keeps_nothing():
    flat = np.full((5, VOCAB), 1 / VOCAB)
    block = block_of(flat, _softmax(np.random.default_rng(1).normal(size=(5, VOCAB))))
    assert FlyDeferred(1, 0.3).score(block).all(), "a window of one asks for doubt only"
    assert not FlyDeferred(6, 0.0).score(block).any()


def test_relaxed_acceptance_says_how_many_candidates_there_are():
    block = block_of(np.full((2, VOCAB), 1 / VOCAB), np.full((2, VOCAB), 1 / VOCAB))
    with pytest.raises(UsageError, match=f"among 6 candidates, but .* give {TOP}"):
        RelaxedTopK(6, 0.5).score(block)


def test_the_random_arbiter_keeps_its_rate_and_its_seed():
    block = block_of(np.full((1000, VOCAB), 1 / VOCAB), np.full((1000, VOCAB), 1 / VOCAB))
    first = RandomArbiter(0.2, seed=1).score(block)
    assert 0.15 < first.mean() < 0.25
    assert set(first.tolist()) == {0.0, 1.0}
    assert (RandomArbiter(0.2, seed=1).score(block) == first).all()
    assert (RandomArbiter(0.2, seed=2).score(block) != first).any()
    assert not RandomArbiter(0.0).score(block).any()
    assert RandomArbiter(1.0).score(block).all()


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        ("draft", AlwaysDraft()),
        ("always-draft", AlwaysDraft()),
        ("typical", TypicalAcceptance()),
        ("typical:0.2", TypicalAcceptance(0.2)),
        ("typical:0.2,0.05", TypicalAcceptance(0.2, 0.05)),
        ("relaxed:2,0.5", RelaxedTopK(2, 0.5)),
        ("fly:2,0.3", FlyDeferred(2, 0.3)),
        ("ensemble:0.25", StaticEnsemble(0.25)),
    ],
)
def test_rules_by_name(spec, made):
    assert baseline(spec) == made


def test_random_by_name():
    block = block_of(np.full((50, VOCAB), 1 / VOCAB), np.full((50, VOCAB), 1 / VOCAB))
    assert (baseline("random:0.5,3").score(block) == RandomArbiter(0.5, 3).score(block)).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown rule ''"),
        ("oracle", "unknown rule 'oracle'"),
        ("random", "'random' has 0 parameters"),
        ("random:", "rate in 'random:' is '', not a number"),
        ("random:x", "rate in 'random:x' is 'x', not a number"),
        ("random:1.5", "rate is 1.5, but must be from 0 to 1"),
        ("random:nan", "rate is nan"),
        ("random:0.5,x", "seed in 'random:0.5,x' is 'x', not an integer"),
        ("draft:1", "'draft:1' has 1 parameters"),
        ("typical:0.1,0.2,0.3", "has 3 parameters"),
        ("relaxed:0,0.2", "top_n is 0, but must be at least 1"),
        ("relaxed:2.5,0.2", "top_n in 'relaxed:2.5,0.2' is '2.5', not an integer"),
        ("fly:0", "window is 0"),
        ("fly:2,-1", "entropy is -1.0, but must be at least 0"),
        ("ensemble:2", "weight is 2.0"),
    ],
)
def test_bad_names_say_what_is_wrong_and_how_it_is_written(spec, message):
    with pytest.raises(UsageError) as caught:
        baseline(spec)
    assert message in str(caught.value)
    assert caught.value.hint
