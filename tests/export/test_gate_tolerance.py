"""How strictly the gate compares: an engine repeats the probes, with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gate_runs import CAPACITY, STEP, TOP, VOCAB, reference
from numpy.typing import NDArray

from cospec.errors import CheckpointError, GateError
from cospec.export import gate
from cospec.export import probes as gate_probes
from cospec.runtime.engines.protocol import StepOutput

pytestmark = pytest.mark.usefixtures("one_thread")


# What is compared, and how strictly: an engine that repeats the probes, with one thing changed.


class Echo:
    """An engine and its decoder at once, which answers each probe with `change` of the reference."""

    def __init__(
        self, probes: Sequence[gate_probes.Probe], change: Callable[[dict[str, Any]], None]
    ):
        self.capacity = CAPACITY
        self._left, self._change = list(probes), change

    def decoder(self, outputs: tuple[str, ...]) -> Echo:
        return self

    def write_cache(self, layers: object, length: int) -> None:
        pass

    def truncate(self, length: int) -> None:
        pass

    def step(self, tokens: NDArray[np.int64], rows: int | None = None) -> StepOutput | None:
        if (tokens == 1).all():
            return None  # the garbage between two probes
        probe = self._left.pop(0)
        values = {"logits": probe.logits.copy(), "hidden": probe.hidden.copy()}
        self._change(values)
        logits = values["logits"]
        order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        exact = logits.astype(np.float64)
        logsumexp = np.log(np.exp(exact).sum(1))
        logprob = exact - logsumexp[:, None]
        following = np.append(tokens[1:], tokens[-1:])
        return StepOutput(
            token=order[:, 0],
            top_values=np.take_along_axis(logits, order, 1),
            top_ids=order,
            logsumexp=logsumexp,
            entropy=-(np.exp(logprob) * logprob).sum(1),
            next_input_logprob=logprob[np.arange(len(tokens)), following],
            **values,
        )


def compare(
    probes: Sequence[gate_probes.Probe],
    change: Callable[[dict[str, Any]], None],
    precision: str = "fp32",
) -> gate.GateReport:
    return gate.check(Echo(probes, change), probes, precision, "draft")  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_the_tolerance_is_a_share_of_the_largest_logit(probes, precision, tolerance):
    largest = max(float(np.abs(probe.logits).max()) for probe in probes)

    def shift_by(share: float) -> Callable[[dict[str, Any]], None]:
        def change(values: dict[str, Any]) -> None:
            values["logits"] += share * tolerance * largest

        return change

    report = compare(probes, shift_by(0.9), precision)
    assert report.tolerance == tolerance
    assert report.max_relative_error == pytest.approx(0.9 * tolerance, rel=0.05)
    with pytest.raises(GateError, match=f"{tolerance:g} is allowed"):
        compare(probes, shift_by(1.1), precision)


def test_a_few_rows_may_be_further_off_in_half_precision(probes):
    largest = max(float(np.abs(probe.logits).max()) for probe in probes)
    rows = sum(len(probe.tokens) for probe in probes)

    def shifted(share: float, count: int) -> Callable[[dict[str, Any]], None]:
        left = [count]

        def change(values: dict[str, Any]) -> None:
            here = min(left[0], len(values["logits"]))
            values["logits"][:here] += share * largest
            left[0] -= here

        return change

    few = rows // 20
    assert few > 0
    report = compare(probes, shifted(0.045, few), "fp16")
    assert report.max_relative_error == pytest.approx(0.045, rel=0.05)
    with pytest.raises(GateError, match=f"{few + 1} of {rows} rows .* 0.02 is allowed"):
        compare(probes, shifted(0.045, few + 1), "fp16")
    with pytest.raises(GateError, match=r"0\.05 is allowed"):
        compare(probes, shifted(0.055, 1), "fp16")
    with pytest.raises(GateError, match=r"0\.0001 is allowed"):
        compare(probes, shifted(0.0002, 1), "fp32")


def test_another_token_is_excused_by_a_tie_only(probes):
    row = {"logits": np.zeros((1, VOCAB), np.float32), "hidden": np.ones((1, 4), np.float32)}
    row["logits"][0, :2] = 10, 10 - 1e-4
    tie = gate_probes.Probe("decode", 0, None, np.array([5]), row["logits"], row["hidden"])

    def swap(values: dict[str, Any]) -> None:
        values["logits"][0, :2] = values["logits"][0, 1], values["logits"][0, 0]

    assert compare([tie], swap).argmax_differences == 1

    # Right in every logit, and yet the graph says token 3.
    output = Echo([tie], lambda values: None).step(np.array([5]))
    assert output is not None
    with pytest.raises(GateError, match=r"row 0 yields token 3 instead of 0, though .* by 10"):
        gate._argmax_differences(replace(output, token=np.array([3])), tie, 1e-4, "draft graph")


@pytest.mark.parametrize("value", [np.nan, 1e3])
def test_a_wrong_hidden_state_is_caught(probes, value):
    def change(values: dict[str, Any]) -> None:
        values["hidden"][-1, 2] = value

    with pytest.raises(GateError, match=STEP + "the hidden state differs from transformers by"):
        compare(probes, change)


def test_a_checkpoint_without_finite_logits_is_its_own_error(module_of):
    module = module_of("llama")
    weight = module.model.norm.weight
    before = weight.clone()
    weight.fill_(float("inf"))
    try:
        with pytest.raises(CheckpointError, match="not finite from this checkpoint in float32"):
            reference(module)
    finally:
        weight.copy_(before)
