"""Each parameter against the logits processors of transformers; seeds; log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cospec.errors import UsageError
from cospec.runtime.sampling.params import SamplingParams
from cospec.runtime.sampling.sampler import Sampler, _restrict

V = 300
EOS = (1, 7)
PROMPT = [3, 5, 5, 250]
OUTPUT = [9, 9, 12, 5]

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 0.3}, {"temperature": 0.3}),
    ({"temperature": 1.7}, {"temperature": 1.7}),
    ({"top_k": 1}, {"top_k": 1}),
    ({"top_k": 17}, {"top_k": 17}),
    ({"top_k": 5000}, {"top_k": 5000}),
    ({"top_p": 0.05}, {"top_p": 0.05}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    ({"top_p": 0.999}, {"top_p": 0.999}),
    ({"min_p": 0.02}, {"min_p": 0.02}),
    ({"min_p": 1.0}, {"min_p": 1.0}),
    ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
    ({"logit_bias": {4: 5.0, 250: -3.0}}, {"sequence_bias": {(4,): 5.0, (250,): -3.0}}),
    ({"min_tokens": 5}, {"min_new_tokens": 5}),
    ({"min_tokens": 4}, {"min_new_tokens": 4}),
    (
        {
            "temperature": 0.7,
            "top_k": 60,
            "top_p": 0.8,
            "min_p": 0.01,
            "repetition_penalty": 1.2,
            "logit_bias": {9: 2.0},
            "min_tokens": 9,
        },
        {
            "temperature": 0.7,
            "top_k": 60,
            "top_p": 0.8,
            "min_p": 0.01,
            "repetition_penalty": 1.2,
            "sequence_bias": {(9,): 2.0},
            "min_new_tokens": 9,
        },
    ),
]


def reference(settings: dict[str, Any], logits: np.ndarray, context: list[int]) -> np.ndarray:
    """What transformers makes of a row: its own processors, in its own order."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=V,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = LlamaForCausalLM(config)
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "do_sample": True}
    generation = GenerationConfig(**{**defaults, **settings}, eos_token_id=list(EOS))
    generation._eos_token_tensor = torch.tensor(EOS)
    processors = model._get_logits_processor(
        generation_config=generation, input_ids_seq_length=len(PROMPT), device="cpu"
    )
    scores = processors(torch.tensor([context]), torch.tensor(logits)[None].double())
    return scores[0].numpy()


@pytest.mark.parametrize(("ours", "theirs"), CASES)
@pytest.mark.parametrize("seed", range(4))
def test_each_parameter_means_what_it_means_in_transformers(ours, theirs, seed):
    logits = np.random.default_rng(seed).normal(0, 3, V).astype(np.float32)
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, **ours}), PROMPT, V, EOS)
    tokens = PROMPT + OUTPUT
    wanted = reference(theirs, logits, tokens)
    row = sampler._processed(logits, tokens[:6], tokens[6:], len(tokens))
    ids, kept = _restrict(row / sampler.params.temperature, sampler.params)
    found = np.full(V, -np.inf)
    found[slice(None) if ids is None else ids] = kept
    assert (np.isinf(found) == np.isinf(wanted)).all()
    finite = np.isfinite(wanted)
    np.testing.assert_allclose(found[finite], wanted[finite], rtol=1e-6, atol=1e-6)


def test_presence_and_frequency_penalties_look_at_the_output_only():
    logits = np.zeros(V, dtype=np.float32)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    row = Sampler(params, PROMPT, V, EOS)._processed(logits, PROMPT + OUTPUT, [], 8)
    assert {int(i): float(row[i]) for i in np.flatnonzero(row)} == {5: -0.75, 9: -1.0, 12: -0.75}


def test_what_is_on_trial_is_counted_and_taken_back():
    logits = np.random.default_rng(0).normal(0, 3, V).astype(np.float32)
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0)
    fresh = Sampler(params, PROMPT, V, EOS)
    sampler = Sampler(params, PROMPT, V, EOS)
    sampler._processed(logits, PROMPT, [77, 78], 6)  # a draft that was rejected
    found = sampler._processed(logits, [*PROMPT, 9], [], 5)
    assert (found == fresh._processed(logits, [*PROMPT, 9], [], 5)).all()


def test_a_position_has_its_own_noise_whatever_was_asked_before():
    logits = np.zeros(V, dtype=np.float32)
    params = SamplingParams(temperature=1.0, seed=5)
    one, other = (Sampler(params, PROMPT, V, EOS) for _ in range(2))
    straight = [one.choose(logits, PROMPT, [0] * i) for i in range(8)]
    backwards = [other.choose(logits, PROMPT, [0] * i) for i in reversed(range(8))][::-1]
    assert straight == backwards
    assert len(set(straight)) > 4
    third = Sampler(SamplingParams(temperature=1.0, seed=6), PROMPT, V, EOS)
    assert [third.choose(logits, PROMPT, [0] * i) for i in range(8)] != straight


def test_the_draws_of_a_seed_are_fixed_for_good():
    """A change here breaks everybody's seeds."""
    sampler = Sampler(SamplingParams(temperature=1.0, seed=2026), [0], 50_000, EOS)
    logits = np.zeros(50_000, dtype=np.float32)
    assert [sampler.choose(logits, [0] * n) for n in (1, 2, 3, 1000)] == DRAWS


DRAWS = [23231, 22314, 44940, 41680]


def test_logprobs_are_those_of_the_model_itself():
    import torch

    logits = np.random.default_rng(1).normal(0, 3, (2, V)).astype(np.float32)
    params = SamplingParams(temperature=0.2, logit_bias={3: 50.0}, logprobs=3)
    found = Sampler(params, PROMPT, V, EOS).logprobs(logits, [3, 4])
    wanted = torch.log_softmax(torch.tensor(logits).double(), -1)
    for row, token, report in zip(wanted, [3, 4], found, strict=True):
        assert report.logprob == pytest.approx(float(row[token]))
        best = row.topk(3)
        assert [i for i, _ in report.top] == best.indices.tolist()
        assert [value for _, value in report.top] == pytest.approx(best.values.tolist())
    none = SamplingParams(logprobs=0)
    assert Sampler(none, PROMPT, V, EOS).logprobs(logits[:1], [3])[0].top == ()


def test_no_token_left():
    params = SamplingParams(logit_bias=dict.fromkeys(range(V), -1e308), min_tokens=1)
    sampler = Sampler(params, PROMPT, V, range(V))
    with pytest.raises(UsageError, match="forbid every token"):
        sampler.choose(np.zeros(V, dtype=np.float32), PROMPT)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"seed": 2**64}, "seed is"),
        ({"min_tokens": -2}, "min_tokens is -2"),
        ({"logprobs": 65}, "logprobs is 65"),
        ({"stop": 5}, "stop is 5, but must be a list"),
        ({"stop": ("",)}, "a text of length >= 1"),
        ({"stop": ["x"] * 65}, "a list of length <= 64"),
        ({"temperature": "1"}, "temperature is '1', but must be a number"),
        ({"top_k": True}, "top_k is True, but must be an integer"),
        ({"top_k": 1.5}, "top_k is 1.5, but must be an integer"),
        ({"logit_bias": {"1" * 5000: 1.0}}, "the number is out of range"),
        ({"logit_bias": {1: float("inf")}}, "a number <= 1e"),
    ],
)
def test_values_out_of_range(setting, message):
    with pytest.raises(UsageError, match=message):
        SamplingParams(**setting)


def test_a_bias_on_a_token_that_there_is_not():
    with pytest.raises(UsageError, match="names the token 300"):
        Sampler(SamplingParams(logit_bias={300: 1.0}), PROMPT, V, EOS)
