"""Matrices in integers: how far they are off, and that each output is quantised on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cospec.export.weights import quantised_weights
from cospec.export.weights.quantised_weights import QuantisedWeights, block_of, quantise
from cospec.models.weights.weights import Weights

RNG = np.random.default_rng


class Given(Weights):
    """Matrices in memory."""

    def __init__(self, **matrices):
        self._matrices = {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
        super().__init__({name: tuple(matrix.shape) for name, matrix in matrices.items()})

    def __getitem__(self, name):
        return self._matrices[name]

    def kind(self, name):
        return "float"


def normal(outputs, inputs, seed=0):
    return RNG(seed).standard_normal((outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize("inputs", [16, 48, 64, 576, 896, 4864])
def test_eight_bits_are_off_by_half_a_step_at_most(inputs):
    matrix = normal(3, inputs)
    blocks = quantise(matrix, 8)
    assert blocks.block == block_of(8, inputs) == min(inputs & -inputs, 128)
    steps = blocks.scales.numbers().repeat(blocks.block, axis=1)
    assert (np.abs(blocks.matrix() - matrix) <= 0.501 * steps).all()


@pytest.mark.parametrize("inputs", [16, 48, 64, 576])
def test_four_bits_are_nearer_than_plain_rounding_where_activations_are_large(inputs):
    rng = RNG(0)
    matrix = rng.standard_t(3, (64, inputs)).astype(np.float32)
    importance = (rng.standard_normal(inputs) ** 4).astype(np.float32)
    blocks = quantise(matrix, 4, importance)
    assert blocks.values.max() <= 15
    assert blocks.zero_points.max() <= 15
    parts = matrix.reshape(64, -1, blocks.block)
    low, high = np.minimum(parts.min(axis=2), 0), np.maximum(parts.max(axis=2), 0)
    steps = ((high - low) / 15)[:, :, None]
    zeros = np.rint(-low[:, :, None] / steps)
    plain = (np.clip(np.rint(parts / steps) + zeros, 0, 15) - zeros) * steps

    def error(rounded):
        return float((np.square(rounded.reshape(matrix.shape) - matrix) * importance).sum())

    assert error(blocks.matrix()) < 0.9 * error(plain)
    # Without activations every input counts alike, and is nearer than with others' weights.
    equal = quantise(matrix, 4).matrix()
    assert np.square(equal - matrix).sum() < np.square(blocks.matrix() - matrix).sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_matrices_of_zeros_and_of_tiny_numbers(bits):
    assert (quantise(np.zeros((2, 32), dtype=np.float32), bits).matrix() == 0).all()
    tiny = normal(2, 32) * np.float32(1e-9)
    assert np.abs(quantise(tiny, bits).matrix()).max() < 1e-6


@pytest.mark.parametrize("inputs", [1, 8, 24, 33, 1000])
def test_inputs_that_no_block_divides(inputs):
    assert block_of(4, inputs) is None


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_matrices_are_read_a_few_outputs_at_a_time(monkeypatch, bits, transposed):
    monkeypatch.setattr(quantised_weights, "CHUNK", 3 * 64)
    matrix = normal(8, 64)
    stored = Given(a=np.ascontiguousarray(matrix.T) if transposed else matrix, b=matrix)
    weights = QuantisedWeights(
        stored, {"a": bits}, frozenset("a" if transposed else ""), {"a": np.arange(64)}
    )
    assert weights.blocks("b") is None
    assert weights.sample("b") is None
    parts = list(weights.blocks("a"))
    assert [len(given) for _, given in parts] == [3, 3, 2]
    assert np.array_equal(np.concatenate([given for _, given in parts]), matrix)
    sample = weights.sample("a")
    for blocks, _ in parts:
        assert (blocks.kind, blocks.bits, blocks.block) == (sample.kind, sample.bits, sample.block)
    assert torch.equal(weights["a"], stored["a"])
