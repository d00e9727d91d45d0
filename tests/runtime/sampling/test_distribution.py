"""Speculative sampling draws from the target's own distribution, whatever the draft proposes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from distributions import DistributionDecoder, Row, chi_square_p, expected, near, random_rows
from numpy.typing import NDArray

from cospec.runtime.decoding.loop import Limits, decode
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.drafting.protocol import Drafter
from cospec.runtime.drafting.registry import NoDrafter
from cospec.runtime.sampling.params import SamplingParams
from cospec.runtime.sampling.sampler import Sampler

V, LENGTH = 5, 3
PROMPT = [1, 2, 3]
TARGET = random_rows(0, V)
DRAFTS = {"near": near(TARGET, 1, V, 0.5), "unrelated": random_rows(2, V)}


def draw(
    target: Row, draft: Row, k: int, params: SamplingParams, length: int = LENGTH
) -> tuple[tuple[int, ...], int, int]:
    """Decode once; return the output and how many tokens were drafted and accepted."""
    sampler = Sampler(params, PROMPT, V, ())
    decoder = DistributionDecoder(draft)
    drafter: Drafter = ModelDrafter(decoder, 8, sampler=sampler) if k else NoDrafter()
    tokens = list(PROMPT)
    rounds = list(
        decode(
            DistributionDecoder(target),
            drafter,
            tokens,
            Limits(length, (), k, 8),
            sampler=sampler,
        )
    )
    drafted, accepted = sum(r.drafted for r in rounds), sum(r.accepted for r in rounds)
    return tuple(tokens[len(PROMPT) :]), drafted, accepted


def softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


@pytest.mark.parametrize("draft", sorted(DRAFTS))
@pytest.mark.parametrize("k", [0, 2, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_outputs_follow_the_targets_distribution(draft, k, temperature):
    counts = Counter(
        draw(TARGET, DRAFTS[draft], k, SamplingParams(temperature=temperature, seed=seed))[0]
        for seed in range(2000)
    )
    wanted = expected(
        TARGET, lambda row: softmax(row.astype(float) / temperature), PROMPT, V, LENGTH
    )
    assert chi_square_p(counts, wanted) > 1e-4


def test_the_p_values_of_many_samples_are_uniform():
    """A bias too small for one sample would show as p-values that crowd at one end."""
    wanted = expected(TARGET, lambda row: softmax(row.astype(float)), PROMPT, V, 2)
    values = []
    for batch in range(60):
        seeds = range(10_000 + 250 * batch, 10_000 + 250 * (batch + 1))
        counts = Counter(
            draw(TARGET, DRAFTS["near"], 2, SamplingParams(temperature=1.0, seed=seed), 2)[0]
            for seed in seeds
        )
        values.append(chi_square_p(counts, wanted))
    ranks = np.arange(1, 61) / 60
    distance = max(np.max(ranks - np.sort(values)), np.max(np.sort(values) - ranks + 1 / 60))
    assert distance < 1.95 / 60**0.5  # Kolmogorov-Smirnov at a level of 0.001


def test_the_test_would_notice_a_draft_that_leaks():
    """The same test on draws from the draft's distribution fails: it has the power to."""
    draft = DRAFTS["near"]
    counts = Counter(
        draw(draft, draft, 2, SamplingParams(temperature=1.0, seed=seed))[0] for seed in range(2000)
    )
    wanted = expected(TARGET, lambda row: softmax(row.astype(float)), PROMPT, V, LENGTH)
    assert chi_square_p(counts, wanted) < 1e-6


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_acceptance_is_at_least_what_shared_noise_promises(temperature):
    """For total variation d, (1-d)/(1+d) of the first tokens: Daliri, Musco and Suresh (2024)."""
    target, draft = (
        softmax(row([*PROMPT]).astype(float) / temperature) for row in (TARGET, DRAFTS["near"])
    )
    d = np.abs(target - draft).sum() / 2
    n = 3000
    accepted = sum(
        draw(TARGET, DRAFTS["near"], 1, SamplingParams(temperature=temperature, seed=seed), 2)[2]
        for seed in range(n)
    )
    bound = (1 - d) / (1 + d)
    assert 0.02 < d < 0.6
    assert accepted / n > bound - 3 * (bound * (1 - bound) / n) ** 0.5


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_seed_gives_one_text_whatever_is_drafted(k):
    for seed in range(100):
        params = SamplingParams(temperature=1.0, top_p=0.95, repetition_penalty=1.1, seed=seed)
        plain = draw(TARGET, TARGET, 0, params, 20)[0]
        for draft in DRAFTS.values():
            assert draw(TARGET, draft, k, params, 20)[0] == plain


def test_a_draft_like_the_target_is_always_accepted():
    params = SamplingParams(temperature=1.3, min_p=0.05, presence_penalty=0.3, seed=1)
    _, drafted, accepted = draw(TARGET, TARGET, 4, params, 200)
    assert drafted == accepted > 100
