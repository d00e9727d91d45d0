"""The loop with a referee, for any target, draft, arbiter, threshold and caps; without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import loop_cases
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scripted import CANDIDATES, ScriptedDecoder, agreeing, hashed

from cospec.errors import UsageError
from cospec.runtime.arbitration.baselines import AlwaysDraft, baseline
from cospec.runtime.arbitration.protocol import Arbiter, Block
from cospec.runtime.arbitration.referee import Caps, Referee
from cospec.runtime.decoding.loop import Limits, Round, decode
from cospec.runtime.decoding.stats import GenerationStats
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.drafting.ngram import NgramDrafter

VOCAB = 12
ALL = ("top_values", "top_ids", "logsumexp", "entropy", "next_input_logprob")
NO_CAPS = Caps(in_a_row=1000, per_block=1000, repeat_ngram=1000, repeat_window=10)
BASELINES = ["typical:0.3,0.09", "relaxed:3,0.4", "fly:2,0.3", "ensemble:0.5", "random:0.5"]


@dataclass
class Hashed:
    """An arbiter whose score is a pure function of what it sees at a position."""

    seed: int
    target_outputs: tuple[str, ...] = ALL
    draft_outputs: tuple[str, ...] = ("top_values", "top_ids", "logsumexp", "entropy")
    calls: int = 0

    def score(self, block: Block) -> NDArray[np.float32]:
        self.calls += 1
        check_evidence(block)
        seen = zip(block.drafted.tolist(), block.target.token.tolist(), strict=True)
        hashes = [crc32(repr((self.seed, *pair)).encode()) % 101 for pair in seen]
        return np.array(hashes, dtype=np.float32) / 100


def check_evidence(block: Block) -> None:
    """Both models' rows are those of the block, whatever was fed before it."""
    k = len(block.drafted)
    draft, target = block.draft, block.target
    assert draft.token.tolist() == block.drafted.tolist()
    assert draft.top_ids is not None
    assert target.top_ids is not None
    assert draft.top_ids[:, 0].tolist() == block.drafted.tolist()
    assert target.top_ids[:, 0].tolist() == target.token.tolist()
    assert target.top_values is not None
    assert target.top_values.shape == (k, CANDIDATES)
    assert target.next_input_logprob is not None
    assert target.logsumexp is not None
    for i, token in enumerate(block.drafted.tolist()):
        found = np.flatnonzero(target.top_ids[i] == token)
        logprob = target.top_values[i, found[0]] - target.logsumexp[i] if found.size else -30
        assert target.next_input_logprob[i] == pytest.approx(logprob, abs=1e-5)


@dataclass(frozen=True)
class Case(loop_cases.Case):
    """One decoding problem with somebody who decides at mismatches."""

    protected: frozenset[int] = frozenset()
    caps: Caps = field(default_factory=Caps)


@dataclass
class Run:
    """What the loop did with a case."""

    rounds: list[Round]
    target: ScriptedDecoder
    referee: Referee | None
    stats: GenerationStats

    @property
    def output(self) -> list[int]:
        return [token for round_ in self.rounds for token in round_.tokens]


@dataclass
class At:
    """A place in a block: what lies before it, and what was kept on the way."""

    before: list[int]
    block: list[int] = field(default_factory=list)
    run: int = 0
    kept: int = 0


def play(case: Case, arbiter: Arbiter | None, threshold: float = 0.5) -> Run:
    target = ScriptedDecoder(case.target, case.capacity)
    draft = ScriptedDecoder(case.draft, case.capacity)
    referee = None
    if arbiter is not None:
        target.select(arbiter.target_outputs)
        draft.select(arbiter.draft_outputs)
        referee = Referee(arbiter, threshold, case.protected, case.caps)
    drafter = ModelDrafter(draft, case.limits.prefill_chunk, collect=arbiter is not None)
    tokens = list(case.prompt)
    result = Run([], target, referee, GenerationStats(len(tokens)))
    for round_ in decode(target, drafter, tokens, case.limits, referee):
        result.rounds.append(round_)
        result.stats.add(round_)
        assert tokens == case.prompt + result.output
        assert target.cache == tokens[:-1], "the cache holds every token but the last"
    return result


@st.composite
def cases(draw: st.DrawFn) -> Case:
    target = hashed(draw(st.integers(0, 10_000)), VOCAB, order=draw(st.integers(1, 4)))
    other = hashed(draw(st.integers(10_001, 20_000)), VOCAB)
    prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12))
    eos = draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=2))
    special = draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=2))
    return Case(
        target=target,
        draft=agreeing(target, other, draw(st.sampled_from([0, 40, 70, 100]))),
        prompt=prompt,
        limits=Limits(
            max_tokens=draw(st.integers(1, 40)),
            eos_token_ids=eos,
            num_draft_tokens=draw(st.integers(0, 9)),
            prefill_chunk=draw(st.integers(1, 8)),
        ),
        capacity=len(prompt) + draw(st.one_of(st.integers(0, 30), st.just(200))),
        protected=eos | special,
        caps=Caps(
            in_a_row=draw(st.integers(0, 5)),
            per_block=draw(st.integers(0, 6)),
            repeat_ngram=draw(st.integers(2, 8)),
            repeat_window=draw(st.integers(4, 40)),
        ),
    )


@given(case=cases(), seed=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_threshold_one_is_strict_token_for_token(case, seed):
    arbiter = Hashed(seed)
    collab, strict = play(case, arbiter, 1.0), play(case, None)
    assert arbiter.calls == 0
    assert collab.rounds == strict.rounds
    assert collab.target.steps == strict.target.steps
    assert (collab.output, collab.rounds[-1].finish) == case.reference()


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_strict_selects_nothing_and_counts_no_override(case):
    strict = play(case, None)
    assert strict.target.selected == []
    assert strict.stats.num_overrides == 0
    assert strict.stats.num_capped == {}
    assert "draft" not in {who for round_ in strict.rounds for who in round_.provenance}


@given(case=cases(), seed=st.integers(0, 100), threshold=st.sampled_from([0.0, 0.2, 0.5, 0.9]))
@settings(max_examples=200, deadline=None)
def test_every_token_is_explained_by_the_models_the_scores_and_the_caps(case, seed, threshold):
    """Decodes again, token by token, from the two models and the rules alone."""
    arbiter = Hashed(seed)
    result = play(case, arbiter, threshold)
    context = list(case.prompt)
    capped = {"in_a_row": 0, "per_block": 0, "repetition": 0}
    for round_ in result.rounds:
        at = At(list(context))
        for i, (token, who) in enumerate(zip(round_.tokens, round_.provenance, strict=True)):
            chosen, is_last = case.target(context), i == len(round_.tokens) - 1
            drafted = case.draft(context)
            reason = None
            if i == round_.drafted:
                assert (token, who, is_last) == (chosen, "bonus" if i else "target", True)
            elif drafted == chosen:
                assert (token, who) == (drafted, "agreed")
                at.run = 0
            elif (reason := refusal(case, seed, threshold, at, drafted)) is None:
                assert (token, who) == (drafted, "draft")
                at.run, at.kept = at.run + 1, at.kept + 1
            else:
                event(reason)
                assert (token, who, is_last) == (chosen, "target", True), reason
                if reason in capped:
                    capped[reason] += 1
            context.append(token)
            at.block.append(token)
        assert round_.provenance.count("draft") == at.kept
        assert round_.mismatches == at.kept + (reason is not None)
        assert round_.accepted == sum(who in ("agreed", "draft") for who in round_.provenance)
    assert result.referee is not None
    assert result.referee.num_capped == capped
    assert result.stats.num_mismatches == sum(r.mismatches for r in result.rounds)
    assert result.stats.num_overrides == sum(r.provenance.count("draft") for r in result.rounds)


def refusal(case: Case, seed: int, threshold: float, at: At, drafted: int) -> str | None:
    """Why the draft's token may not stay against the target's; None if it may."""
    chosen, caps = case.target([*at.before, *at.block]), case.caps
    if {drafted, chosen} & case.protected:
        return "protected"
    if at.run >= caps.in_a_row:
        return "in_a_row"
    if at.kept >= caps.per_block:
        return "per_block"
    if repeats(case, at.before, [*at.block, drafted]):
        return "repetition"
    score = np.float32(crc32(repr((seed, drafted, chosen)).encode()) % 101) / np.float32(100)
    return None if threshold == 0 or float(score) > threshold else "score"


def repeats(case: Case, before: Sequence[int], block: Sequence[int]) -> bool:
    """Whether the last n-gram stood there already, in the window before the block or in the block."""
    n, window = case.caps.repeat_ngram, case.caps.repeat_window
    tail = [*before[max(0, len(before) - window) :], *block]
    text = "".join(f"<{token}>" for token in tail)
    last = "".join(f"<{token}>" for token in tail[-n:])
    return text.find(last) < len(text) - len(last)


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_without_bounds_threshold_zero_keeps_every_drafted_token(case):
    case = Case(case.target, case.draft, case.prompt, case.limits, case.capacity, caps=NO_CAPS)
    result = play(case, AlwaysDraft(), 0.0)
    context = list(case.prompt)
    for round_ in result.rounds:
        assert round_.accepted == round_.drafted
        for i, token in enumerate(round_.tokens):
            assert token == (case.draft if i < round_.drafted else case.target)(context)
            context.append(token)


@given(case=cases(), seed=st.integers(0, 100), threshold=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_an_accepted_mismatch_costs_no_pass_of_the_target(case, seed, threshold):
    result = play(case, Hashed(seed), threshold)
    rounds = len(result.rounds)
    prefill, verify = result.target.steps[:-rounds], result.target.steps[-rounds:]
    assert len(prefill) <= -(-(len(case.prompt) - 1) // case.limits.prefill_chunk)
    for step, round_ in zip(verify[1:], result.rounds[1:], strict=True):
        assert step.width == round_.drafted + 1
    if threshold == 0 and len(result.output) > rounds:
        event("several tokens a pass")


@given(case=cases(), threshold=st.sampled_from([0.0, 0.5]))
@settings(max_examples=100, deadline=None)
def test_the_target_alone_decides_ends_and_special_tokens(case, threshold):
    result = play(case, AlwaysDraft(), threshold)
    context = list(case.prompt)
    for round_ in result.rounds:
        for token, who in zip(round_.tokens, round_.provenance, strict=True):
            if token in case.protected or case.target(context) in case.protected:
                assert token == case.target(context)
                assert who != "draft"
            context.append(token)


@pytest.mark.parametrize("spec", BASELINES)
@given(case=cases())
@settings(max_examples=30, deadline=None)
def test_every_baseline_decodes(spec, case):
    result = play(case, baseline(spec))
    assert len(result.output) == len([who for r in result.rounds for who in r.provenance])
    assert 0 <= result.stats.num_overrides <= result.stats.num_mismatches


def test_a_drafter_without_a_model_has_no_evidence():
    case = Case(lambda _: 5, lambda _: 6, [1, 2, 1, 2], Limits(5, frozenset(), 3, 4), 100)
    tokens = list(case.prompt)
    target = ScriptedDecoder(case.target)
    referee = Referee(AlwaysDraft(), 0.5, frozenset())
    with pytest.raises(UsageError, match="drafts without one"):
        list(decode(target, NgramDrafter(), tokens, case.limits, referee))
    assert tokens == case.prompt, "nothing was committed"
