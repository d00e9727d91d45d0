"""The speculative loop against one-token-at-a-time decoding, for any target, drafter and limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from loop_cases import KINDS, Case, cases, drafter_of, run, simple
from scripted import ScriptedDecoder

from cospec.errors import BackendError
from cospec.runtime.decoding.loop import decode
from cospec.runtime.drafting.draft_model import ModelDrafter


@KINDS
@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_output_and_ending_are_those_of_plain_decoding(kind, case):
    result = run(case, drafter_of(kind, case))
    output, finish = case.reference()
    event(f"{kind}: {finish}")
    assert result.output == output
    assert [round_.finish for round_ in result.rounds[:-1]] == [None] * (len(result.rounds) - 1)
    assert result.rounds[-1].finish == finish
    assert len(result.rounds) <= len(output), "a pass yields at least one token"


@KINDS
@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_passes_are_as_wide_as_they_may_be_and_feed_each_token_once(kind, case):
    result = run(case, drafter_of(kind, case))
    k, chunk, prompt = case.limits.num_draft_tokens, case.limits.prefill_chunk, case.prompt
    rounds = len(result.rounds)
    steps = result.target.steps
    prefill, first, rest = (
        steps[:-rounds],
        steps[-rounds],
        steps[1 - rounds :] if rounds > 1 else [],
    )
    assert [t for step in prefill for t in step.tokens] == prompt[: first.length]
    assert all(step.width <= chunk for step in prefill)
    assert len(prefill) <= -(-(len(prompt) - 1) // chunk)
    if len(prompt) <= chunk - k:
        assert prefill == [], "a short prompt costs no pass of its own"
    assert first.width <= max(chunk, k + 1)
    for step, round_ in zip(rest, result.rounds[1:], strict=True):
        assert step.width == round_.drafted + 1 <= k + 1


@KINDS
@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_counts_and_provenance_say_what_happened(kind, case):
    """Recomputed from both models, not from the loop's own intermediate results."""
    result = run(case, drafter_of(kind, case))
    proposals = {proposal.context: proposal for proposal in result.proposals}
    context = list(case.prompt)
    for round_ in result.rounds:
        left = case.limits.max_tokens - (len(context) - len(case.prompt))
        room = min(case.limits.num_draft_tokens, left - 1, case.capacity - len(context))
        proposal = proposals.pop(len(context), None)
        assert (proposal is None) == (room <= 0)
        drafted = proposal.drafted if proposal else []
        assert len(drafted) <= room
        assert proposal is None or proposal.count == room

        ends = [i for i, token in enumerate(drafted) if token in case.limits.eos_token_ids]
        drafted = drafted[: ends[0] + 1] if ends else drafted  # nothing follows an EOS
        assert round_.drafted == len(drafted)
        assert round_.accepted == round_.provenance.count("agreed")
        assert len(round_.provenance) == len(round_.tokens)
        for i, (token, who) in enumerate(zip(round_.tokens, round_.provenance, strict=True)):
            assert token == case.target(context)
            if who == "agreed":
                assert drafted[i] == token
            elif who == "bonus":
                assert i == len(drafted) == round_.accepted > 0
            else:
                assert i == len(round_.tokens) - 1, "the target's correction ends its round"
                assert not drafted or drafted[i] != token
            context.append(token)
    assert not proposals, "every proposal went into a round"


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_a_draft_equal_to_the_target_is_always_right(case):
    case = replace(case, draft=case.target)
    result = run(case, drafter_of("model", case))
    assert all(round_.accepted == round_.drafted for round_ in result.rounds)
    k = case.limits.num_draft_tokens
    assert len(result.rounds) == -(-len(result.output) // (k + 1))


@pytest.mark.parametrize("k", range(10))
def test_plain_decoding_is_one_token_a_pass_and_speculation_is_not_slower(k):
    plain = run(simple(0), drafter_of("model", simple(0)))
    assert [step.width for step in plain.target.steps[1:]] == [1] * 30
    case = simple(k)
    result = run(case, drafter_of("model", case))
    assert result.output == plain.output
    assert len(result.rounds) < 30 if k else len(result.rounds) == 30


def eos_case(position: int, **changes: object) -> Case:
    """A case whose target ends the text at output `position`, drafted perfectly, k = 4."""
    case = simple(4, **changes)
    output, _ = case.reference()
    assert output.index(output[position]) == position
    limits = replace(case.limits, eos_token_ids=frozenset([output[position]]))
    return replace(case, limits=limits, draft=case.target)


@pytest.mark.parametrize("position", range(12))
def test_eos_at_any_place_of_a_block_is_the_last_token(position):
    case = eos_case(position)
    result = run(case, drafter_of("model", case))
    assert len(result.output) == position + 1
    assert result.rounds[-1].finish == "eos"
    # Blocks yield five tokens, four of them drafted; an accepted EOS has no bonus behind it.
    place = position % 5
    last = result.rounds[-1]
    assert last.provenance == ["agreed"] * place + ["bonus" if place == 4 else "agreed"]
    assert last.drafted == min(place + 1, 4), "nothing is proposed behind an EOS"
    assert last.accepted == min(place + 1, 4)


@pytest.mark.parametrize("position", [1, 3, 7])
def test_eos_that_only_the_target_chooses_ends_the_block(position):
    perfect = eos_case(position)
    (eos,) = perfect.limits.eos_token_ids

    def never_eos(context: Sequence[int]) -> int:
        token = perfect.target(context)
        return token + 1 if token == eos else token

    case = replace(perfect, draft=never_eos)
    result = run(case, drafter_of("model", case))
    assert result.output == case.reference()[0]
    assert (result.rounds[-1].finish, result.output[-1]) == ("eos", eos)
    assert result.rounds[-1].provenance[-1] == "target"
    assert result.rounds[-1].drafted > result.rounds[-1].accepted, "tokens behind it were dropped"


def test_an_eos_that_only_the_drafter_proposes_does_not_end_the_text():
    case = simple(4)
    eos = 1000  # outside the target's vocabulary
    case = replace(
        case,
        draft=lambda context: eos if len(context) % 3 == 0 else case.target(context),
        limits=replace(case.limits, eos_token_ids=frozenset([eos])),
    )
    result = run(case, drafter_of("model", case))
    assert result.output == case.reference()[0]
    assert result.rounds[-1].finish == "length"
    assert any(eos in p.drafted and p.drafted[-1] == eos for p in result.proposals)
    for round_, proposal in zip(result.rounds, result.proposals, strict=False):
        assert round_.drafted == [*proposal.drafted, eos].index(eos) + (eos in proposal.drafted)


@pytest.mark.parametrize("k", [0, 1, 4])
@KINDS
def test_a_prompt_that_fills_the_cache_still_yields_one_token(kind, k):
    case = simple(k, capacity=5)
    result = run(case, drafter_of(kind, case))
    assert result.output == [case.target(case.prompt)]
    assert (result.rounds[0].finish, result.rounds[0].drafted) == ("capacity", 0)
    assert result.target.length == case.capacity


@pytest.mark.parametrize("free", range(1, 9))
@KINDS
def test_the_last_token_needs_no_place_in_the_cache(kind, free):
    case = simple(4, capacity=5 + free)
    result = run(case, drafter_of(kind, case))
    assert len(result.tokens) == case.capacity + 1
    assert result.rounds[-1].finish == "capacity"
    assert result.target.length == case.capacity


def test_length_is_the_reason_where_length_and_capacity_coincide():
    case = simple(4, capacity=5 + 9, max_tokens=10)
    assert run(case, drafter_of("model", case)).rounds[-1].finish == "length"


def test_a_one_token_prompt_and_one_token_output():
    case = simple(4, prompt=[3], max_tokens=1)
    result = run(case, drafter_of("model", case))
    assert result.output == [case.target([3])]
    assert [step.width for step in result.target.steps] == [1]
    assert result.proposals == [], "no draft is made for tokens that may not be emitted"


def test_a_cache_that_holds_a_prefix_of_the_context_is_continued():
    case = simple(4)
    target = ScriptedDecoder(case.target, case.capacity)
    target.step(case.prompt[:3])
    result = run(case, drafter_of("model", case), target)
    assert result.output == case.reference()[0]
    assert target.steps[1].length == 3


@pytest.mark.parametrize("failing", ["target", "draft"])
@pytest.mark.parametrize("at", [0, 1, 2, 5, 8])
def test_a_backend_failure_surfaces_and_what_was_committed_stays(failing, at):
    case = simple(3)
    broken = {failing: [at]}
    target = ScriptedDecoder(case.target, case.capacity, broken.get("target", ()))
    draft = ScriptedDecoder(case.draft, case.capacity, broken.get("draft", ()))
    tokens, seen = list(case.prompt), list(case.prompt)
    rounds = decode(target, ModelDrafter(draft, 4), tokens, case.limits)
    with pytest.raises(BackendError, match="scripted backend failed"):
        seen.extend(token for round_ in rounds for token in round_.tokens)
    output, _ = case.reference()
    assert tokens == seen == (case.prompt + output)[: len(tokens)]
    assert len(tokens) < len(case.prompt) + len(output)
    assert target.cache == tokens[: target.length], "nothing uncommitted is left behind"
    with pytest.raises(StopIteration):
        next(rounds)

    # The same decoders go on where they stopped, and start anew.
    draft.truncate(min(draft.length, target.length))
    left = replace(case.limits, max_tokens=len(case.prompt) + len(output) - len(tokens))
    for _ in decode(target, ModelDrafter(draft, 4), tokens, left):
        pass
    assert tokens == case.prompt + output
    target.truncate(0)
    draft.truncate(0)
    assert run(case, ModelDrafter(draft, 4), target).output == output
