"""Decoding under a grammar, against transformers with the same grammar, one token at a time."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributions import chi_square_p

import cospec
from cospec.models import tiny_pair
from cospec.runtime.decoding.loop import MOST_FORCED
from cospec.runtime.sampling.grammar import GrammarCompiler, GrammarState
from cospec.runtime.sampling.params import SamplingParams
from cospec.runtime.sampling.sampler import Sampler

llguidance = pytest.importorskip("llguidance")
TOKENIZER = (Path(tiny_pair.path("target")) / "tokenizer.json").read_text(encoding="utf-8")
CASES = int(os.environ.get("COSPEC_GRAMMAR_CASES", "90"))
"""Number of fuzzed cases; raise it for a campaign."""

MAX_TOKENS = 40

Make = Callable[[random.Random], dict[str, Any]]


def _schema(rng: random.Random) -> dict[str, Any]:
    names = rng.sample(["answer", "unit", "steps", "ok", "n"], rng.randint(1, 3))
    kinds: list[dict[str, Any]] = [
        {"type": "integer", "minimum": 0, "maximum": 999},
        {"enum": ["keys", "kg", "m"]},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        {"type": "string", "maxLength": 6},
    ]
    properties = {name: rng.choice(kinds) for name in names}
    schema = {"type": "object", "properties": properties, "required": names}
    return {"json_schema": {**schema, "additionalProperties": False}}


def _tagged(kind: str) -> dict[str, Any]:
    properties = {"kind": {"const": kind}, kind: {"type": "integer"}}
    return {"type": "object", "properties": properties, "required": ["kind"]}


GRAMMARS: list[Make] = [
    _schema,
    lambda rng: {
        "regex": rng.choice(["[0-9]{1,3} keys", "(58|113|171)( \\+ [0-9]+)?", "so [a-z]+"])
    },
    lambda rng: {"choice": tuple(rng.sample(["yes", "no", "171", "17", "58 keys", "none"], 3))},
    lambda rng: {"grammar": 'root ::= [0-9]+ " " ("+" | "-") " " [0-9]+ " = " [0-9]+'},
    lambda rng: {"grammar": 'start: "A: " /[0-9]{1,4}/ ("," " " /[0-9]{1,2}/)*'},
    lambda rng: {
        "json_schema": {"oneOf": [_tagged(k) for k in rng.sample(["keys", "sum", "no"], 2)]}
    },
]


class ForbiddenDrafter:
    """Proposes tokens at random; most of them are forbidden."""

    def __init__(self, context: object) -> None:
        self._rng = random.Random(7)

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        return [self._rng.randrange(512) for _ in range(count)]


@pytest.fixture(scope="module")
def sessions(tiny_pair_bundle: Path) -> dict[str, cospec.Session]:
    drafters: dict[str, Any] = {"model": "model", "ngram": "ngram", "none": "none"}
    drafters |= {"combined": "combined", "forbidden": ForbiddenDrafter}
    return {
        name: cospec.load(tiny_pair_bundle, drafter=drafter) for name, drafter in drafters.items()
    }


@pytest.fixture(scope="module")
def module() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_pair.path("target")).eval()


def matcher_of(session: cospec.Session, options: dict[str, Any]) -> Any:
    """A matcher of llguidance itself, for the reference."""
    manifest = session.manifest
    tokenizer = llguidance.LLTokenizer(
        TOKENIZER, n_vocab=manifest.vocab_size, eos_token=list(manifest.generation.eos_token_ids)
    )
    spec = cospec.GenerationOptions(**options).grammar_spec
    assert spec is not None
    return llguidance.LLMatcher(tokenizer, spec.source())


def reference(
    module: Any, session: cospec.Session, prompt: list[int], options: dict[str, Any]
) -> list[int]:
    """The target's greedy output under the grammar, from transformers."""
    import torch
    from transformers import LogitsProcessor

    matcher = matcher_of(session, options)

    class Masked(LogitsProcessor):
        def __init__(self) -> None:
            self.seen = len(prompt)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            fresh = input_ids[0, self.seen :].tolist()
            self.seen += len(fresh)
            assert matcher.consume_tokens(fresh)
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.unpackbits(bits, bitorder="little")[: scores.shape[-1]].astype(bool)
            if matcher.is_stopped():
                allowed[:] = False
                allowed[list(session.manifest.generation.eos_token_ids)] = True
            return scores.masked_fill(~torch.from_numpy(allowed), float("-inf"))

    with torch.inference_mode():
        output = module.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            logits_processor=[Masked()],
            pad_token_id=0,
            eos_token_id=list(session.manifest.generation.eos_token_ids),
        )
    return [int(token) for token in output[0, len(prompt) :]]


def drawn(seed: int) -> tuple[dict[str, Any], str, str, int]:
    """A grammar, a prompt, a drafter and a draft length."""
    rng = random.Random(seed)
    options = rng.choice(GRAMMARS)(rng)
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    prompt = rng.choice(
        [f"Mia has {a} keys and Sam {b} more than Mia. How many in all?", f"What is {a} + {b}?"]
    )
    drafter = rng.choice(["model", "model", "ngram", "combined", "forbidden", "none"])
    return options, prompt, drafter, rng.choice([0, 1, 2, 3, 5, 8])


@pytest.mark.parametrize("seed", range(CASES))
def test_strict_equals_transformers_under_the_grammar(sessions, module, seed):
    options, text, drafter, k = drawn(seed)
    session = sessions[drafter]
    prompt = session.encode([{"role": "user", "content": text}])
    wanted = reference(module, session, prompt, options)
    stream = session.stream(prompt, num_draft_tokens=k, max_tokens=MAX_TOKENS, **options)
    pieces = list(stream)
    assert [token for piece in pieces for token in piece.tokens] == wanted
    matcher = matcher_of(session, options)
    eos = session.manifest.generation.eos_token_ids
    assert matcher.consume_tokens([token for token in wanted if token not in eos])
    assert stream.completion().is_complete == matcher.is_accepting()


@pytest.mark.parametrize("seed", range(CASES // 6))
def test_one_seed_gives_one_text_for_every_draft_length_and_drafter(sessions, seed):
    options, text, _, _ = drawn(seed)
    sampled = {**options, "temperature": 0.9, "top_p": 0.95, "seed": seed, "max_tokens": 30}
    outputs = {
        (name, k): tuple(sessions[name].generate(text, num_draft_tokens=k, **sampled).tokens)
        for name, k in (("none", 0), ("model", 1), ("model", 4), ("ngram", 3), ("forbidden", 2))
    }
    assert len(set(outputs.values())) == 1, outputs


def grammar_state(options: dict[str, Any], vocab: int = 512) -> GrammarState:
    spec = cospec.GenerationOptions(**options).grammar_spec
    assert spec is not None
    return GrammarCompiler(lambda: TOKENIZER, vocab, [2]).compile(spec)


@pytest.mark.parametrize("k", [0, 3])
def test_draws_follow_the_masked_distribution(k):
    """Two positions of a choice of texts: counts against the exact probabilities."""
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 2, (4, 512)).astype(np.float32)
    options = {"regex": "[0-9][0-9]"}
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(3000):
        params = SamplingParams(temperature=1.0, seed=seed)
        sampler = Sampler(params, [5], 512, [2], grammar_state_copy(options))
        if k:
            drafted = [int(sampler.choose(rows[2], [5], []))]
            first = sampler.verify(rows[:2], [5], drafted, whole=False)
            tokens = first if len(first) == 2 else [*first, sampler.choose(rows[1], [5, *first])]
        else:
            tokens = [sampler.choose(rows[0], [5])]
            tokens.append(sampler.choose(rows[1], [5, *tokens]))
        counts[tuple(tokens)] += 1
    wanted = {}
    state = grammar_state(options)
    for first in np.flatnonzero(state.allowed()):
        p = masked_softmax(rows[0], state.allowed())[first]
        after = masked_softmax(rows[1], state.allowed([int(first)]))
        for second in np.flatnonzero(state.allowed([int(first)])):
            wanted[int(first), int(second)] = p * after[second]
    assert set(counts) <= set(wanted)
    assert chi_square_p(counts, wanted) > 1e-4


_STATES: dict[str, GrammarState] = {}


def grammar_state_copy(options: dict[str, Any]) -> GrammarState:
    key = json.dumps(options)
    if key not in _STATES:
        _STATES[key] = grammar_state(options)
    return _STATES[key].copy()


def masked_softmax(row: Any, allowed: Any) -> Any:
    weights = np.where(allowed, np.exp(row.astype(float)), 0.0)
    return weights / weights.sum()


def test_collab_never_keeps_a_token_that_the_grammar_forbids(sessions):
    from cospec.runtime.arbitration.baselines import AlwaysDraft

    kept = 0
    for seed in range(40):
        options, text, _, _ = drawn(seed)
        done = sessions["model"].generate(
            text, mode="collab", arbiter=AlwaysDraft(), num_draft_tokens=4, max_tokens=30, **options
        )
        kept += done.provenance.count("draft")
        eos = sessions["model"].manifest.generation.eos_token_ids
        tokens = [token for token in done.tokens if token not in eos]
        assert grammar_state(options).count_allowed(tokens) == len(tokens)
    assert kept > 0, "no case in which the draft's token was kept"


def test_an_output_that_is_cut_short_says_that_it_is_incomplete(sessions):
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}}
    options = {"json_schema": {**schema, "required": ["answer"]}}
    session = sessions["model"]
    cut = session.generate("What is 2 + 3?", max_tokens=3, **options)
    assert (cut.finish_reason, cut.is_complete) == ("length", False)
    stopped = session.generate("What is 2 + 3?", stop=('"answer"',), max_tokens=40, **options)
    assert (stopped.finish_reason, stopped.is_complete) == ("stop", False)
    whole = session.generate("What is 2 + 3?", choice=("5", "6"))
    assert (whole.finish_reason, whole.is_complete) == ("eos", True)
    assert session.generate("What is 2 + 3?", max_tokens=3).is_complete is None
    capacity = session.manifest.capacity
    text = "1 + 2 = " * (capacity // 8)
    tokens = session.codec.encode(text)[: capacity - 4]
    full = session.generate(tokens, max_tokens=capacity, **options)
    assert (full.finish_reason, full.is_complete) == ("capacity", False)


LONG = {"the_final_answer_of_the_problem": {"const": 171}, "unit": {"enum": ["keys", "kilograms"]}}
LONG_SCHEMA = {"type": "object", "properties": LONG, "required": list(LONG)}


@pytest.mark.parametrize("drafter", ["none", "model", "ngram", "combined"])
@pytest.mark.parametrize("length", [1, 2, 8, "auto"])
def test_forced_tokens_are_drafted_beside_those_of_the_drafter(sessions, drafter, length):
    session = sessions[drafter]
    plain = session.generate("x", num_draft_tokens=0, json_schema=LONG_SCHEMA)
    drafted = session.generate("x", num_draft_tokens=length, json_schema=LONG_SCHEMA)
    assert drafted.tokens == plain.tokens
    assert json.loads(drafted.text)["the_final_answer_of_the_problem"] == 171
    # Several times what the drafter itself may propose, and nothing beyond the longest block.
    assert len(drafted.tokens) / drafted.stats.num_target_passes > 4
    k = 0 if length == "auto" else length
    assert len(drafted.stats.num_draft_tokens_per_pos) <= max(8, k) + MOST_FORCED


def test_a_block_that_is_judged_or_traced_has_no_forced_tokens(sessions):
    from cospec.runtime.arbitration.baselines import AlwaysDraft
    from cospec.runtime.trace.record import Trace

    session = sessions["model"]
    options = {"json_schema": LONG_SCHEMA, "num_draft_tokens": 2}
    plain = session.generate("x", num_draft_tokens=0, json_schema=LONG_SCHEMA)
    for settings in (
        {"mode": "collab", "arbiter": AlwaysDraft(), "threshold": 1.0},
        {"observer": Trace(session)},
    ):
        done = session.generate("x", **options, **settings)
        assert done.tokens == plain.tokens
        assert len(done.stats.num_draft_tokens_per_pos) == 2
