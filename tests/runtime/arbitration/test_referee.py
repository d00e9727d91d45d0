"""From scores to decisions: thresholds, protected tokens, caps, and what the arbiter is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cospec.runtime.arbitration.protocol import Block
from cospec.runtime.arbitration.referee import Caps, Referee
from cospec.runtime.engines.protocol import StepOutput

NO_CAPS = Caps(in_a_row=1000, per_block=1000, repeat_ngram=1000, repeat_window=10)


class Fixed:
    """An arbiter whose scores are given; it keeps the blocks that it saw."""

    target_outputs: tuple[str, ...] = ()
    draft_outputs: tuple[str, ...] = ()

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = np.array(scores, dtype=np.float32)
        self.blocks: list[Block] = []

    def score(self, block: Block) -> NDArray[np.float32]:
        self.blocks.append(block)
        return self.scores[: len(block.drafted)]


def keep(
    referee: Referee,
    drafted: list[int],
    chosen: list[int],
    tokens: Sequence[int] = (1, 2, 3),
    fed_before: int = 0,
) -> list[bool]:
    """Let the referee decide; `chosen` is the target's choice at each drafted token."""
    rows = [-9] * fed_before + chosen + [-1]  # the last row is the bonus
    verified = StepOutput(token=np.array(rows), entropy=np.arange(len(rows), dtype=np.float32))
    return referee.keep(tokens, drafted, chosen, StepOutput(token=np.array(drafted)), verified)


def leading(flags: Sequence[bool]) -> int:
    return [*flags, False].index(False)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[int], list[int], list[float]]:
    k = draw(st.integers(1, 10))
    drafted = draw(st.lists(st.integers(0, 30), min_size=k, max_size=k))
    match = draw(st.lists(st.booleans(), min_size=k, max_size=k))
    chosen = [d if same else d + 31 for d, same in zip(drafted, match, strict=True)]
    score = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32))
    return drafted, chosen, draw(st.lists(score, min_size=k, max_size=k))


@given(block=blocks(), thresholds=st.lists(st.floats(0, 1), min_size=2, max_size=6))
@settings(max_examples=200, deadline=None)
def test_acceptance_falls_as_the_threshold_rises(block, thresholds):
    drafted, chosen, scores = block
    counts = [
        leading(keep(Referee(Fixed(scores), threshold, frozenset()), drafted, chosen))
        for threshold in sorted(thresholds)
    ]
    assert counts == sorted(counts, reverse=True)


@given(block=blocks(), threshold=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_mismatch_stays_where_its_score_is_above_and_the_block_ends_at_the_first_that_is_not(
    block, threshold
):
    drafted, chosen, scores = block
    found = keep(Referee(Fixed(scores), threshold, frozenset(), NO_CAPS), drafted, chosen)
    stands = [
        d == c or (threshold < 1 and (s > threshold or threshold == 0))
        for d, c, s in zip(drafted, chosen, scores, strict=True)
    ]
    assert leading(found) == leading(stands)


@given(block=blocks())
def test_threshold_one_and_agreement_never_ask_the_arbiter(block):
    drafted, chosen, scores = block
    arbiter = Fixed(scores)
    found = keep(Referee(arbiter, 1.0, frozenset()), drafted, chosen)
    assert found == [d == c for d, c in zip(drafted, chosen, strict=True)]
    assert keep(Referee(arbiter, 0.0, frozenset()), drafted, drafted) == [True] * len(drafted)
    assert arbiter.blocks == []


def test_a_score_of_zero_is_kept_at_threshold_zero_and_one_that_is_not_a_number_never():
    assert keep(Referee(Fixed([0.0]), 0.0, frozenset()), [5], [6]) == [True]
    assert keep(Referee(Fixed([float("nan")]), 0.1, frozenset()), [5], [6]) == [False]


def test_the_arbiter_sees_the_block_as_it_will_have_been_reached():
    arbiter = Fixed([1.0] * 6)
    drafted, chosen = [10, 11, 12, 13, 14, 15], [10, 0, 0, 13, 0, 15]
    keep(Referee(arbiter, 0.5, frozenset()), drafted, chosen, fed_before=2)
    (block,) = arbiter.blocks
    assert block.drafted.tolist() == drafted
    assert block.target.token.tolist() == chosen
    assert block.target.entropy is not None
    assert block.target.entropy.tolist() == [2, 3, 4, 5, 6, 7], "rows of the block, not before it"
    assert block.matches.tolist() == [True, False, False, True, False, True]
    assert block.mismatches.tolist() == [0, 0, 1, 2, 2, 3]
    assert block.run.tolist() == [0, 0, 1, 2, 0, 1]
    assert block.position.tolist() == [0, 1, 2, 3, 4, 5]
    assert block.run.dtype == block.position.dtype == block.mismatches.dtype == np.float32


@pytest.mark.parametrize(
    ("drafted", "chosen", "kept"),
    [([5, 7], [6, 7], 2), ([9, 7], [6, 7], 0), ([5, 7], [9, 7], 0), ([9, 5], [9, 6], 2)],
)
def test_protected_tokens_are_the_targets_choice(drafted, chosen, kept):
    """Neither may the draft set one nor replace one; a match stands."""
    referee = Referee(Fixed([1.0, 1.0]), 0.0, frozenset([9]))
    assert leading(keep(referee, drafted, chosen)) == kept
    assert referee.num_capped == {"in_a_row": 0, "per_block": 0, "repetition": 0}, "not a cap"


def test_a_run_of_kept_tokens_is_capped_and_counted():
    referee = Referee(Fixed([1.0] * 5), 0.5, frozenset(), Caps(in_a_row=2))
    assert leading(keep(referee, [1, 2, 3, 4, 5], [9, 9, 9, 9, 9])) == 2
    assert leading(keep(referee, [1, 2, 3, 4, 5], [9, 9, 3, 9, 9])) == 5, "a match ends the run"
    assert referee.num_capped == {"in_a_row": 1, "per_block": 0, "repetition": 0}


def test_a_blocks_share_is_capped_and_counted():
    referee = Referee(Fixed([1.0] * 7), 0.5, frozenset(), Caps(per_block=3))
    assert leading(keep(referee, [1, 2, 3, 4, 5, 6, 7], [9, 2, 9, 4, 9, 6, 9])) == 6
    assert referee.num_capped == {"in_a_row": 0, "per_block": 1, "repetition": 0}


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([1, 2, 3, 4, 1, 2], 0),  # 1 2 3 would stand there twice
        ([1, 2, 4, 4, 1, 2], 1),
        ([1, 2, 3, 0, 0, 0, 1, 2], 0),
        ([1, 2, 3, 0, 0, 0, 0, 1, 2], 1),  # too long ago for a window of 8
        ([3, 3, 3], 0),  # overlapping with itself
        ([2], 1),
        ([], 1),
    ],
)
def test_a_token_that_repeats_an_ngram_is_not_kept(tokens, kept):
    caps = Caps(repeat_ngram=3, repeat_window=8)
    referee = Referee(Fixed([1.0]), 0.5, frozenset(), caps)
    assert leading(keep(referee, [3], [9], tokens)) == kept
    assert referee.num_capped["repetition"] == 1 - kept


def test_a_repetition_inside_the_block_counts_too():
    caps = Caps(in_a_row=9, per_block=9, repeat_ngram=2, repeat_window=8)
    referee = Referee(Fixed([1.0] * 5), 0.5, frozenset(), caps)
    assert leading(keep(referee, [5, 6, 7, 5, 6], [9] * 5, tokens=[0])) == 4
    assert referee.num_capped["repetition"] == 1


def test_the_target_may_repeat_what_it_likes():
    caps = Caps(repeat_ngram=2, repeat_window=8)
    referee = Referee(Fixed([1.0] * 4), 0.5, frozenset(), caps)
    assert keep(referee, [5, 6, 5, 6], [5, 6, 5, 6], tokens=[5, 6]) == [True] * 4


@pytest.mark.parametrize(
    ("threshold", "caps", "scores", "drafted", "ground"),
    [
        (0.5, Caps(), [0.9, 0.1, 0.9], [1, 2, 3], "score"),
        (1.0, Caps(), [0.9, 0.9, 0.9], [1, 2, 3], "score"),
        (0.5, Caps(in_a_row=2), [0.9] * 3, [1, 2, 3], "in_a_row"),
        (0.5, Caps(per_block=1), [0.9] * 3, [1, 9, 3], "per_block"),
        (0.5, Caps(repeat_ngram=1), [0.9] * 3, [1, 2, 1], "repetition"),
        (0.5, Caps(), [0.9] * 3, [1, 2, 7], "protected"),
        (0.5, Caps(), [0.9] * 3, [1, 2, 3], None),
        (1.0, Caps(), [0.9] * 3, [9, 9, 9], None),
    ],
)
def test_why_a_block_ends_at_a_mismatch_is_recorded(threshold, caps, scores, drafted, ground):
    referee = Referee(Fixed(scores), threshold, frozenset([7]), caps)
    keep(referee, [5], [6], tokens=[6])  # what an earlier block left must not stay
    keep(referee, drafted, [9, 9, 9])
    assert referee.refused_for == ground
