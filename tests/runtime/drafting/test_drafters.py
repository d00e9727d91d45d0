"""The drafters: what they propose, what they feed, what they forget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedDecoder, agreeing, hashed, reference_decode

from cospec.runtime.decoding.loop import Limits, decode
from cospec.runtime.drafting.combined import CombinedDrafter
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.drafting.ngram import NgramDrafter
from cospec.runtime.drafting.registry import NoDrafter
from cospec.runtime.engines.protocol import StepOutput

MODEL = hashed(11, 50)
PROMPT = [4, 8, 15, 16, 23, 42]


def continuation(tokens: Sequence[int], count: int) -> list[int]:
    """What the model says next, greedily."""
    whole = list(tokens)
    for _ in range(count):
        whole.append(MODEL(whole))
    return whole[len(tokens) :]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 6])
@pytest.mark.parametrize("chunk", [1, 2, 4, 64])
def test_the_model_drafter_proposes_its_greedy_continuation(count, length, chunk):
    decoder = ScriptedDecoder(MODEL)
    assert ModelDrafter(decoder, chunk).propose(PROMPT[:length], count) == continuation(
        PROMPT[:length], count
    )
    assert decoder.length == length + count - 1, "the last drafted token is not fed"
    assert max(step.width for step in decoder.steps) <= max(chunk, 2)


class ChainedScriptedDecoder(ScriptedDecoder):
    """A `ChainedDecoder`, as TensorRT's is."""

    chains = 0

    def draft(self, tokens: Sequence[int], count: int) -> StepOutput:
        assert count > 0, "a chain without tokens"
        self.chains += 1
        chosen: list[int] = []
        for _ in range(count):
            chosen.append(int(self.step(tokens).token[-1]))
            tokens = chosen[-1:]
        return StepOutput(token=np.array(chosen))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_decoder_that_feeds_itself_is_asked_once_a_proposal(count):
    decoder = ChainedScriptedDecoder(MODEL)
    drafter = ModelDrafter(decoder, chunk=4)
    assert drafter.propose(PROMPT, count) == continuation(PROMPT, count)
    assert decoder.chains == min(count, 1)
    drafter.rollback(len(PROMPT) + 1)
    tokens = [*PROMPT, *continuation(PROMPT, 1), 49]
    assert drafter.propose(tokens, count) == continuation(tokens, count)
    assert decoder.chains == 2 * min(count, 1)


@pytest.mark.parametrize("accepted", range(5))
def test_after_a_rollback_the_cache_holds_what_stands_and_only_news_are_fed(accepted):
    decoder = ScriptedDecoder(MODEL)
    drafter = ModelDrafter(decoder, chunk=4)
    drafted = drafter.propose(PROMPT, 4)
    drafter.rollback(len(PROMPT) + accepted)
    assert decoder.cache == PROMPT + drafted[: min(accepted, 3)]

    # With all four accepted, the fourth and the bonus are both new to the draft.
    tokens = [*PROMPT, *drafted[:accepted], 49]
    before = len(decoder.steps)
    assert drafter.propose(tokens, 3) == continuation(tokens, 3)
    assert decoder.steps[before].tokens == ((drafted[3], 49) if accepted == 4 else (49,))
    assert [step.width for step in decoder.steps[before + 1 :]] == [1, 1]


@given(
    rounds=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8),
    chunk=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_each_committed_token_is_fed_exactly_once(rounds, chunk):
    decoder = ScriptedDecoder(MODEL)
    drafter = ModelDrafter(decoder, chunk)
    tokens, rejected = list(PROMPT), 0
    for count, wanted in rounds:
        drafted = drafter.propose(tokens, count)
        assert decoder.cache == (tokens + drafted)[:-1]
        accepted = min(wanted, count)
        rejected += max(count - 1 - accepted, 0)  # drafted, fed, and not accepted
        drafter.rollback(len(tokens) + accepted)
        tokens += [*drafted[:accepted], 49]
        assert decoder.cache == tokens[: decoder.length]
        assert len(tokens) - decoder.length in (1, 2)
    fed = sum(step.width for step in decoder.steps)
    assert fed == decoder.length + rejected


def test_a_drafter_that_was_not_asked_for_a_while_catches_up_in_chunks():
    decoder = ScriptedDecoder(MODEL)
    drafter = ModelDrafter(decoder, chunk=4)
    drafter.propose(PROMPT, 1)
    drafter.rollback(len(PROMPT))
    tokens = PROMPT + list(range(10))
    before = len(decoder.steps)
    assert drafter.propose(tokens, 2) == continuation(tokens, 2)
    assert [step.width for step in decoder.steps[before:]] == [4, 4, 2, 1]


def reference_lookup(tokens: Sequence[int], count: int, sizes: range) -> list[int]:
    """Search from the longest suffix and the latest occurrence, with a follower inside `tokens`."""
    for size in sizes:
        if size > len(tokens):
            continue
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                return list(tokens[start + size : start + size + count])
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 60), max_size=6),
    bounds=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    count=st.integers(1, 9),
)
@settings(max_examples=300, deadline=None)
def test_the_ngram_drafter_equals_a_search_of_the_whole_text(tokens, cuts, bounds, count):
    smallest, more = bounds
    drafter = NgramDrafter(max_ngram=smallest + more, min_ngram=smallest)
    sizes = range(smallest + more, smallest - 1, -1)
    for cut in sorted({min(cut, len(tokens)) for cut in cuts} | {len(tokens)}):
        # The text grows between calls; whatever is known was known to the reference too.
        expected = reference_lookup(tokens[:cut], count, sizes)
        assert drafter.propose(tokens[:cut], count) == expected


@pytest.mark.parametrize(
    ("tokens", "proposal"),
    [
        ([1, 2, 9, 1, 2, 8, 1, 2], [8, 1, 2]),  # the latest occurrence wins
        ([5, 1, 2, 9, 7, 1, 2, 8, 5, 1, 2], [9, 7, 1]),  # a longer suffix wins over a later one
        ([1, 2, 3, 1, 2], [3, 1, 2]),  # what follows runs up to the end, and no further
        ([7, 7, 7], [7]),  # an occurrence may overlap the suffix
        ([1, 2, 3, 4], []),
        ([1, 2, 3, 1], []),  # one token is too little
        ([1], []),
    ],
)
def test_the_ngram_drafter_by_example(tokens, proposal):
    assert NgramDrafter().propose(tokens, 3) == proposal


def test_the_ngram_drafter_never_returns_more_than_asked_for():
    drafter = NgramDrafter()
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert [drafter.propose(text, count) for count in (1, 3)] == [[3], [3, 4, 5]]


def test_no_drafter_proposes_nothing():
    drafter = NoDrafter()
    assert drafter.propose(PROMPT, 5) == []


def test_the_combined_drafter_looks_up_while_that_is_right_and_comes_back():
    decoder = ScriptedDecoder(MODEL)
    drafter = CombinedDrafter(NgramDrafter(), ModelDrafter(decoder, 8))
    repeated = [1, 2, 3, 4, 5, 6, 7, 8]

    def round_of(tokens: list[int], came: list[int]) -> list[int]:
        drafted = drafter.propose(tokens, 4)
        right = 0
        while right < min(4, len(came)) and drafted[right : right + 1] == came[right : right + 1]:
            right += 1
        drafter.rollback(len(tokens) + right)
        tokens += came
        return drafted

    tokens = repeated * 3
    assert round_of(tokens, repeated[:5]) == repeated[:4]
    assert decoder.steps == [], "a lookup that is trusted costs no pass"
    for wrong in range(10):  # what follows 1 2 3 4 is never 5 from here on
        tokens += repeated[:4]
        drafted = round_of(tokens, [20 + wrong])
    assert drafted == continuation(tokens[:-1], 4)
    assert decoder.length <= len(tokens)
    for _ in range(8):  # now it is, and the lookups that were not proposed have been right
        tokens += repeated[:4]
        drafted = round_of(tokens, repeated[4:])
    assert drafted == repeated[4:]


@given(seed=st.integers(0, 200), k=st.integers(1, 6), period=st.integers(3, 40))
def test_the_combined_drafter_changes_no_output(seed, k, period):
    words = hashed(seed, 12, order=1 + period % 3)
    target = ScriptedDecoder(words)
    draft = ScriptedDecoder(agreeing(words, hashed(seed + 1, 12), 60))
    drafter = CombinedDrafter(NgramDrafter(), ModelDrafter(draft, 8))
    tokens = list(PROMPT)
    for _ in decode(target, drafter, tokens, Limits(40, (), k, 8)):
        pass
    assert (
        tokens[len(PROMPT) :]
        == reference_decode(words, PROMPT, max_tokens=40, eos_token_ids=(), capacity=1000)[0]
    )
