"""Matrices in the numbers that TensorRT dequantises: a checkpoint's own, and rounded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import random_gguf
from packed_folders import Matrix, awq, gptq, quantised_folder

from cospec.export.weights.tensorrt_numbers import (
    LARGEST,
    MatrixForm,
    WeightRequest,
    choose_form,
    matrix_of,
    numbers,
    rounded,
)
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.models.weights.streamed_model import streamed_model
from cospec.models.weights.weights import Weights

NAME = "model.layers.0.mlp.down_proj.weight"
FREE, STRICT = True, False


def request(choice: Any = "keep", free: bool = FREE, **more: Any) -> WeightRequest:
    return WeightRequest(choice, free, **more)


def restored(
    weights: Weights, form: MatrixForm, free: bool, dtype: Any = np.float16
) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as its numbers state it, and as the checkpoint does."""
    parts = list(numbers(weights, NAME, False, form, dtype, free))
    found = [matrix_of(part.values, part.scales, part.offsets, form) for part in parts]
    return np.concatenate(found), np.concatenate([part.reference for part in parts])


@pytest.fixture
def weights_of(tmp_path: Path) -> Iterator[Callable[[Path], Weights]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def get(path: Path) -> Weights:
            opened = open_checkpoint(resolve(str(path)))
            return stack.enter_context(streamed_model(opened, torch.float32)).weights

        yield get


@pytest.mark.parametrize("free", [FREE, STRICT])
@pytest.mark.parametrize(("kind", "share"), [("Q4_0", 0.0), ("Q4_1", 1e-3), ("Q4_K", 1e-3)])
def test_four_bits_of_gguf_are_taken_over(kind, share, free, weights_of, tmp_path):
    """Q4_0 bit for bit; where the author multiplies two factors, half precision rounds the product."""
    weights = weights_of(random_gguf(tmp_path / "m.gguf", lambda name: kind, layers=1))
    form = choose_form(weights, NAME, False, request(free=free))
    assert form is not None
    assert (form.kind, form.stored, form.block, form.own) == (kind, "int4", 32, True)
    assert form.has_offset == (kind != "Q4_0" or not free)
    found, reference = restored(weights, form, free)
    assert np.abs(found - reference).max() <= share * np.abs(reference).max()


@pytest.mark.parametrize(
    ("kind", "share"),
    [("Q8_0", 0.0), ("Q5_0", 0.0), ("Q5_1", 1e-3), ("Q5_K", 1e-3), ("Q6_K", 1e-3)],
)
def test_more_bits_of_gguf_are_taken_over_where_int8_may_be_in_blocks(
    kind, share, weights_of, tmp_path
):
    weights = weights_of(random_gguf(tmp_path / "m.gguf", lambda name: kind, layers=1))
    form = choose_form(weights, NAME, False, request(free=FREE))
    assert form is not None
    assert (form.kind, form.stored, form.own) == (kind, "int8", True)
    found, reference = restored(weights, form, FREE)
    assert np.abs(found - reference).max() <= share * np.abs(reference).max()
    parts = list(numbers(weights, NAME, False, form, np.float16, FREE))
    assert all((part.scales >= 0).all() for part in parts), "the parser refuses others for int8"


@pytest.mark.parametrize(
    ("kind", "choice", "free", "has_int4"),
    [
        ("Q8_0", "keep", STRICT, True),  # int8 in blocks is not for TensorRT 10
        ("Q6_K", "int4", FREE, True),  # four bits would lose more
        ("Q4_0", "int8", FREE, True),  # as the user asked
        ("Q4_0", "keep", STRICT, False),  # a GPU without int4
    ],
)
def test_what_cannot_be_taken_over_is_rounded_to_int8(
    kind, choice, free, has_int4, weights_of, tmp_path
):
    weights = weights_of(random_gguf(tmp_path / "m.gguf", lambda name: kind, layers=1))
    form = choose_form(weights, NAME, False, request(choice, free, has_int4=has_int4))
    assert form == MatrixForm("int8", "int8", None)
    found, reference = restored(weights, form, free)
    largest = np.abs(reference).max(axis=1, keepdims=True)
    error = np.abs(found - reference)
    assert (error <= 0.51 * largest / 127 + 1e-6).all()
    assert error.max() > 0


@pytest.mark.parametrize("free", [FREE, STRICT])
@pytest.mark.parametrize(
    ("store", "settings", "matrix"),
    [
        (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, {}),
        (
            gptq,
            {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True},
            {"is_shuffled": True},
        ),
        (
            gptq,
            {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
            {"has_zeros": False},
        ),
    ],
)
def test_awq_and_gptq_are_taken_over(
    store, settings, matrix, free, weights_of, checkpoint_of, tmp_path
):
    rng = np.random.default_rng(0)
    plain = checkpoint_of("llama")
    folder, same = quantised_folder(
        plain, tmp_path, settings, lambda n, k: Matrix(n, k, 4, rng, **matrix), store
    )
    weights = weights_of(folder)
    form = choose_form(weights, NAME, False, request("int4", free))
    assert form is not None
    assert (form.stored, form.block, form.own) == ("int4", 32, True)
    found, _ = restored(weights, form, free, np.float32)
    expected = weights_of(same)[NAME].float().numpy()
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_scale_of_a_whole_column_becomes_blocks_of_the_same_scale(
    weights_of, checkpoint_of, tmp_path
):
    rng = np.random.default_rng(0)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 256, "sym": True}
    plain = checkpoint_of("llama", overrides={"intermediate_size": 256, "hidden_size": 256})
    folder, same = quantised_folder(
        plain, tmp_path, settings, lambda n, k: Matrix(n, k, 4, rng, group=k, has_zeros=False), gptq
    )
    weights = weights_of(folder)
    form = choose_form(weights, NAME, False, request("int4"))
    assert form is not None
    assert (form.block, form.own) == (128, True)
    expected = weights_of(same)[NAME].float().numpy()
    assert np.array_equal(restored(weights, form, FREE, np.float32)[0], expected)


@pytest.mark.parametrize(("inputs", "block"), [(256, 128), (192, 64), (96, 32), (48, None)])
def test_int4_takes_the_largest_block_that_divides_the_inputs(inputs, block, checkpoint_of):
    class Plain(Weights):
        def __getitem__(self, name: str) -> torch.Tensor:
            raise AssertionError("the form does not depend on the numbers")

        def kind(self, name: str) -> str:
            return "float"

    weights = Plain({NAME: (64, inputs)})
    form = choose_form(weights, NAME, False, request("int4"))
    assert form is not None
    assert (form.stored, form.block) == (("int4", block) if block else ("int8", None))
    assert choose_form(weights, NAME, False, request("keep")) is None


@pytest.mark.parametrize("stored", ["int8", "int4", "fp8"])
def test_rounding_is_to_the_nearest_value(stored):
    matrix = np.random.default_rng(0).normal(0, 0.1, (8, 256)).astype(np.float32)
    form = MatrixForm(stored, stored, 128 if stored == "int4" else None)
    values, scales = rounded(matrix, form, np.float16)
    assert scales.shape == (8, 2 if stored == "int4" else 1)
    each = scales.astype(np.float32).repeat(256 // scales.shape[1], axis=1)
    found = matrix_of(values, scales, None, form)
    clipped = np.abs(matrix) > LARGEST[stored] * each
    # A float keeps three binary digits after the first, so it is off by a sixteenth of itself at most.
    step = np.abs(matrix) / 16 if stored == "fp8" else each / 2
    assert (np.abs(found - matrix) <= step * 1.02 + 1e-4)[~clipped].all()
    assert clipped.mean() < 0.05


def test_the_scales_of_int4_are_better_than_those_that_clip_nothing():
    matrix = np.random.default_rng(0).standard_t(4, (64, 512)).astype(np.float32)
    form = MatrixForm("int4", "int4", 128)
    values, scales = rounded(matrix, form, np.float16)
    found = ((matrix_of(values, scales, None, form) - matrix) ** 2).mean()
    parts = matrix.reshape(64, 4, 128)
    plain = np.abs(parts).max(axis=2, keepdims=True) / 7
    expected = ((np.rint(parts / plain) * plain - parts) ** 2).mean()
    assert found < 0.9 * expected


@pytest.mark.parametrize("stored", ["int8", "int4", "fp8"])
def test_a_matrix_of_zeros_stays_one(stored):
    form = MatrixForm(stored, stored, 128 if stored == "int4" else None)
    values, scales = rounded(np.zeros((2, 128), np.float32), form, np.float16)
    assert (matrix_of(values, scales, None, form) == 0).all()
    assert (scales > 0).all()
