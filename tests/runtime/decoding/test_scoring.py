"""Scores of a given text are the log-probabilities with which it would have been generated."""

from __future__ import annotations

import pytest

import cospec
from cospec.errors import PromptError

PROMPT = "Q: What is 12 + 30?\nA:"


@pytest.fixture(scope="module")
def session(tiny_pair_bundle):
    return cospec.load(tiny_pair_bundle)


@pytest.fixture(scope="module")
def generated(session):
    params = cospec.SamplingParams(logprobs=20, temperature=1.0, seed=5)
    return session.generate(PROMPT, sampling=params, max_tokens=90)


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_scores_are_those_of_the_generation(session, generated, top):
    prompt = session.encode(PROMPT)
    text = [*prompt, *generated.tokens]
    scores = session.score(text, top=top)
    assert len(scores) == len(text) - 1
    own = scores[len(prompt) - 1 :]
    assert [each.logprob for each in own] == pytest.approx(
        [each.logprob for each in generated.logprobs], abs=1e-4
    )
    for ours, theirs in zip(own, generated.logprobs, strict=True):
        assert len(ours.top) == top
        assert [logprob for _, logprob in ours.top] == pytest.approx(
            [logprob for _, logprob in theirs.top[:top]], abs=1e-4
        )


@pytest.mark.parametrize("chunk", [2, 3, 7, 64])
def test_scores_do_not_depend_on_the_width_of_the_passes(session, generated, chunk):
    from cospec.runtime.decoding.scoring import score_tokens

    text = [*session.encode(PROMPT), *generated.tokens]
    decoder = session.new_session().caches.target
    scores = score_tokens(decoder, text, 2, chunk)
    expected = session.score(text, top=2)
    assert [each.logprob for each in scores] == pytest.approx(
        [each.logprob for each in expected], abs=1e-4
    )
    assert decoder.length == len(text) - 1


def test_what_was_scored_need_not_be_read_again(session):
    own = session.generate(PROMPT, max_tokens=9).text
    fresh = session.new_session()
    fresh.score(PROMPT)
    after = fresh.generate(PROMPT, max_tokens=9)
    assert after.text == own
    assert after.stats.num_cached_tokens == len(session.encode(PROMPT)) - 1


def test_one_token_has_no_score_and_no_token_is_refused(session):
    assert session.score([5]) == []
    with pytest.raises(PromptError, match="empty"):
        session.score([])
