"""Every family in every lowering: strict speculative output is transformers' own greedy output.

Random weights make a harder test than trained ones in one respect: two tokens may be nearly tied, and
then rounding alone decides. So each comparison first shows that the reference separates its best two
tokens by far more than the graph's measured error; weights and prompts are chosen such that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import FAMILIES, SLIDING_WINDOW

from cospec.export import gate, graph
from cospec.export import probes as gate_probes
from cospec.export.attention import LOWERINGS, Lowering
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.decoding.loop import Limits, decode
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions
from cospec.runtime.engines.protocol import GraphShape

CAPACITY, VOCAB, SUMMARY_TOP = 96, 320, 8
NEW_TOKENS = 24
# Below the window, across it while decoding, and far beyond it (and beyond every prefill chunk).
PROMPT_LENGTHS = (2, SLIDING_WINDOW - 3, 3 * SLIDING_WINDOW + 4)
WIDEST = 4
NOISE = 0.05
# Seeds of the weights, where 0 has a near tie: see the module's docstring.
WEIGHT_SEED: dict[str, int] = {}


@dataclass
class Reference:
    """What transformers computes for one family.

    Attributes:
        module: the checkpoint's module.
        probes: of the parity gate.
        prompts: token ids.
        outputs: transformers' greedy continuation of each prompt.
        margin: smallest distance between the best two logits at any generated position.
        scale: largest logit of the probes, which the gate measures its error in.
    """

    module: Any
    probes: list[gate_probes.Probe]
    prompts: list[list[int]]
    outputs: list[list[int]]
    margin: float
    scale: float


@dataclass
class Exported:
    """Target and draft of one family in one lowering.

    Attributes:
        target: engine of the unchanged weights.
        draft: engine of the perturbed copy, in the same graph.
        report: what the gate measured on the target.
        reference: what must come out.
    """

    target: OrtEngine
    draft: OrtEngine
    report: gate.GateReport
    reference: Reference


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest, checkpoint_of: Callable[..., Path]) -> Reference:
    family = request.param
    folder = checkpoint_of(family, seed=WEIGHT_SEED.get(family, 0), vocab_size=VOCAB)
    module: Any = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    probes = gate_probes.reference(module, CAPACITY, VOCAB, WIDEST, [SLIDING_WINDOW])
    rng = np.random.default_rng(7)
    prompts = [rng.integers(4, 300, length).tolist() for length in PROMPT_LENGTHS]
    outputs = [greedy(module, prompt) for prompt in prompts]
    margin = min(map(lambda p, o: smallest_margin(module, p, o), prompts, outputs))
    scale = max(float(np.abs(probe.logits).max()) for probe in probes)
    return Reference(module, probes, prompts, outputs, margin, scale)


@pytest.fixture(scope="module", params=LOWERINGS)
def exported(
    request: pytest.FixtureRequest,
    reference: Reference,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    lowering: Lowering = request.param
    folder = tmp_path_factory.mktemp(lowering)
    traced = graph.trace(reference.module, lowering, CAPACITY, VOCAB)
    target = engine(traced, folder / "target")
    # The traced graph refers to the module's weights: other weights, written again, are a copy that
    # differs in nothing else, at no cost of another trace.
    with perturbed(reference.module):
        draft = engine(traced, folder / "draft")
    report = gate.check(target, reference.probes, "fp32", "target")
    return Exported(target, draft, report, reference)


def test_the_target_graph_passes_the_gate(exported):
    report = exported.report
    assert report.max_relative_error < 1e-5
    assert report.argmax_differences == 0
    assert report.longest_position == CAPACITY - 1


# Narrower and wider than the widths that the gate has seen, without another export.
@pytest.mark.parametrize(("num_draft_tokens", "prefill_chunk"), [(3, 5), (7, 16)])
def test_strict_equals_transformers_greedy(exported, num_draft_tokens, prefill_chunk):
    expected = exported.reference
    assert_no_near_tie(exported)
    drafted = accepted = 0
    for prompt, output in zip(expected.prompts, expected.outputs, strict=True):
        tokens, limits = list(prompt), limits_of(num_draft_tokens, prefill_chunk)
        drafter = ModelDrafter(exported.draft.decoder(), prefill_chunk)
        for done in decode(exported.target.decoder(), drafter, tokens, limits):
            drafted, accepted = drafted + done.drafted, accepted + done.accepted
        assert tokens[len(prompt) :] == output
    assert 0 < accepted < drafted, "the draft must be right sometimes and wrong sometimes"


def test_the_target_as_its_own_draft_is_always_accepted(exported):
    expected = exported.reference
    assert_no_near_tie(exported)
    for prompt, output in zip(expected.prompts, expected.outputs, strict=True):
        tokens = list(prompt)
        drafter = ModelDrafter(exported.target.decoder(), 5)
        rounds = list(decode(exported.target.decoder(), drafter, tokens, limits_of(3, 5)))
        assert tokens[len(prompt) :] == output
        assert all(done.accepted == done.drafted for done in rounds)


def assert_no_near_tie(exported: Exported) -> None:
    error = exported.report.max_relative_error * exported.reference.scale
    assert exported.reference.margin > 10 * error, "near tie: choose another seed (WEIGHT_SEED)"


def limits_of(num_draft_tokens: int, prefill_chunk: int) -> Limits:
    # No end of text: a random model would emit it after three tokens or never.
    return Limits(NEW_TOKENS, frozenset(), num_draft_tokens, prefill_chunk)


def greedy(module: Any, prompt: list[int]) -> list[int]:
    from transformers import GenerationConfig

    ids = torch.tensor([prompt])
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    module.generation_config.eos_token_id = None
    whole = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    output: list[int] = whole[0, len(prompt) :].tolist()
    assert len(output) == NEW_TOKENS
    return output


def smallest_margin(module: Any, prompt: list[int], output: list[int]) -> float:
    """Distance of the best two logits where they are closest, in one pass without a cache."""
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([prompt + output]), use_cache=False).logits[0]
    best, second = logits[len(prompt) - 1 : -1].float().topk(2).values.unbind(-1)
    return float((best - second).min())


def engine(traced: graph.TracedGraph, folder: Path) -> OrtEngine:
    folder.mkdir()
    graph.write(traced, folder / "model.onnx")
    shape = GraphShape(
        CAPACITY, VOCAB, traced.hidden_size, SUMMARY_TOP, traced.kv_shapes, "float32"
    )
    return OrtEngine(folder / "model.onnx", shape, OrtOptions(provider="cpu"))


@contextmanager
def perturbed(module: Any) -> Iterator[None]:
    """Add noise to the module's weights, relative to each tensor's spread, for a while."""
    generator = torch.Generator().manual_seed(1)
    before = [parameter.clone() for parameter in module.parameters()]
    with torch.no_grad():
        for parameter in module.parameters():
            shift = torch.randn(parameter.shape, generator=generator)
            parameter.add_(NOISE * shift * parameter.std())
        yield
        for parameter, old in zip(module.parameters(), before, strict=True):
            parameter.copy_(old)
