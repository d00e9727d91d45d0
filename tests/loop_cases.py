"""Random cases for the decoding loop: scripted models, drafters of every kind, and what a run did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from scripted import Choose, ScriptedDecoder, agreeing, hashed, reference_decode

from cospec.runtime.decoding.loop import Limits, Round, decode
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.drafting.ngram import NgramDrafter
from cospec.runtime.drafting.protocol import Drafter, RollbackDrafter
from cospec.runtime.drafting.registry import NoDrafter
from cospec.runtime.engines.protocol import StepOutput

VOCAB = 12
NO_EOS = frozenset[int]()


@dataclass(frozen=True)
class Case:
    """One decoding problem."""

    target: Choose
    draft: Choose
    prompt: list[int]
    limits: Limits
    capacity: int

    def reference(self) -> tuple[list[int], str]:
        return reference_decode(
            self.target,
            self.prompt,
            max_tokens=self.limits.max_tokens,
            eos_token_ids=self.limits.eos_token_ids,
            capacity=self.capacity,
        )


@dataclass
class Run:
    """What the loop did with a case."""

    rounds: list[Round]
    tokens: list[int]
    target: ScriptedDecoder
    proposals: list[Proposal]

    @property
    def output(self) -> list[int]:
        return [token for round_ in self.rounds for token in round_.tokens]


@dataclass(frozen=True)
class Proposal:
    """One call of a drafter."""

    context: int
    count: int
    drafted: list[int]


class Spy:
    """Passes proposals through, records them, and holds the loop to the drafter's protocol."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.proposals: list[Proposal] = []
        self.stands = 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        assert count > 0
        drafted = self.drafter.propose(tokens, count)
        self.proposals.append(Proposal(len(tokens), count, list(drafted)))
        return list(drafted)

    def evidence(self, count: int) -> StepOutput:
        raise AssertionError("nothing asks what the draft saw where nobody judges it")

    def rollback(self, length: int) -> None:
        assert length >= self.stands, "committed tokens never go"
        self.stands = length
        if isinstance(self.drafter, RollbackDrafter):
            self.drafter.rollback(length)


class WildDrafter:
    """Proposes whatever: too little, nonsense, tokens behind an EOS."""

    def __init__(self, choose: Choose, lengths: Choose) -> None:
        self._choose = choose
        self._lengths = lengths

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        drafted: list[int] = []
        while len(drafted) < min(count, self._lengths(tokens)):
            drafted.append(self._choose([*tokens, *drafted]))
        return drafted


def drafter_of(kind: str, case: Case) -> Drafter:
    if kind == "model":
        decoder = ScriptedDecoder(case.draft, case.capacity)
        return ModelDrafter(decoder, case.limits.prefill_chunk)
    if kind == "ngram":
        return NgramDrafter(max_ngram=3, min_ngram=1)
    if kind == "wild":
        return WildDrafter(case.draft, hashed(7, vocab_size=12))
    return NoDrafter()


def run(case: Case, drafter: Drafter, target: ScriptedDecoder | None = None) -> Run:
    """Decode the case, and check after each round what holds between rounds."""
    target = target or ScriptedDecoder(case.target, case.capacity)
    spy = Spy(drafter)
    tokens = list(case.prompt)
    result = Run([], tokens, target, spy.proposals)
    for round_ in decode(target, spy, tokens, case.limits):
        assert round_.tokens, "a pass yields at least one token"
        result.rounds.append(replace(round_, tokens=list(round_.tokens)))
        assert tokens == case.prompt + result.output
        assert target.cache == tokens[:-1], "the cache holds every token but the last"
        assert spy.stands in (len(tokens) - 1, len(tokens)), "context plus what was accepted"
    return result


@st.composite
def cases(draw: st.DrawFn) -> Case:
    target = hashed(draw(st.integers(0, 10_000)), VOCAB, order=draw(st.integers(1, 4)))
    other = hashed(draw(st.integers(10_001, 20_000)), VOCAB)
    percent = draw(st.sampled_from([0, 30, 60, 90, 100]))
    prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
    limits = Limits(
        max_tokens=draw(st.integers(1, 40)),
        eos_token_ids=draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=2)),
        num_draft_tokens=draw(st.integers(0, 9)),
        prefill_chunk=draw(st.integers(1, 8)),
    )
    capacity = len(prompt) + draw(st.one_of(st.integers(0, 30), st.just(200)))
    return Case(target, agreeing(target, other, percent), prompt, limits, capacity)


def simple(num_draft_tokens: int = 4, **changes: Any) -> Case:
    """A case without EOS whose draft agrees on about two thirds of the contexts."""
    target = hashed(3, 1000)
    limits = Limits(
        max_tokens=30, eos_token_ids=NO_EOS, num_draft_tokens=num_draft_tokens, prefill_chunk=4
    )
    limits = replace(limits, **{k: v for k, v in changes.items() if hasattr(limits, k)})
    case = Case(target, agreeing(target, hashed(4, 1000), 66), [5, 6, 7, 8, 9], limits, 500)
    return replace(case, **{k: v for k, v in changes.items() if hasattr(case, k)})


KINDS = pytest.mark.parametrize("kind", ["model", "ngram", "wild", "none"])
