"""Matrices in the numbers that TensorRT dequantises: int4, int8 and fp8, always around zero.

    weight[n, k] = scale[n, b] * value[n, k] + offset[n, b]

int4 has a scale for each block of inputs, int8 and fp8 have one for each output. Offsets are stored for
matrices whose author's blocks have zero points or minima; the graph adds them as a term of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...models.weights.blocks import Blocks
from ...models.weights.weights import CHUNK, Weights

Stored = Literal["int4", "int8", "fp8"]
Choice = Literal["keep", "fp32", "fp16", "int8", "int4", "fp8"]

DTYPES: dict[Stored, Any] = {
    "int4": ml_dtypes.int4,
    "int8": np.int8,
    "fp8": ml_dtypes.float8_e4m3fn,
}
LARGEST: dict[Stored, float] = {"int4": 7.0, "int8": 127.0, "fp8": 448.0}
BITS: dict[Stored, int] = {"int4": 4, "int8": 8, "fp8": 8}
BLOCKS = (128, 64, 32)
"""Inputs that share a scale in int4; the largest that divides a matrix. TensorRT multiplies by int4
without unpacking it first only if it is in blocks."""

_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)  # below it float16 loses digits
_SHRINK = np.linspace(0.75, 1.0, 8, dtype=np.float32)
"""Scales that are tried for a block of int4, as shares of the one that clips nothing."""


@dataclass(frozen=True)
class MatrixForm:
    """How a matrix is stored.

    Attributes:
        kind: for the certificate: what its author calls the format, or ours.
        stored: type of its values.
        block: inputs that share a scale; None for one scale for each output.
        has_offset: whether blocks have offsets.
        own: whether the numbers are the checkpoint's own.
        order: int64 [K]; input k of the stored matrix is input order[k] of the layer, or None.
    """

    kind: str
    stored: Stored
    block: int | None
    has_offset: bool = False
    own: bool = False
    order: NDArray[np.int64] | None = field(default=None, compare=False)

    def blocks(self, inputs: int) -> int:
        """Return how many scales an output has."""
        return inputs // self.block if self.block else 1


@dataclass(frozen=True)
class Numbers:
    """Some outputs of a matrix.

    Attributes:
        values: [n, K], of the stored type.
        scales: [n, blocks], in the precision of the graph.
        offsets: the same, or None.
        reference: float32 [n, K], what the checkpoint holds, in the layer's order of inputs.
    """

    values: NDArray[Any]
    scales: NDArray[Any]
    offsets: NDArray[Any] | None
    reference: NDArray[np.float32]


@dataclass(frozen=True)
class WeightRequest:
    """How the weights of a decoder are stored for TensorRT.

    Attributes:
        choice: int8, int4, fp8, or `keep` for nothing but a checkpoint's own integers.
        free: see `Device.dequantises_freely`.
        has_int4: whether the GPU takes int4.
    """

    choice: Choice
    free: bool
    has_int4: bool = True


def choose_form(
    weights: Weights, name: str, transposed: bool, request: WeightRequest
) -> MatrixForm | None:
    """Return the form that a matrix gets, or None if it stays in plain numbers.

    A checkpoint's own integers are taken over where TensorRT can read them and the choice has as many
    bits: up to four with int4, five to eight in blocks with int8, if `free`; both with `keep`. Other
    integers are rounded to int8, which is closer than four bits would be.

    Args:
        weights: of the checkpoint.
        name: of the parameter.
        transposed: whether it is stored as [K, N].
        request: what is asked for.
    """
    choice = request.choice
    inputs = weights.shapes[name][0 if transposed else 1]
    stored = weights.blocks(name)
    if stored is not None and choice != "fp8":
        own = _own_form(next(iter(stored))[0], request)
        if own is not None and choice in ("keep", own.stored):
            return own
        return MatrixForm("int8", "int8", None)
    if choice == "keep":
        return None
    if choice == "int4":
        block = next((size for size in BLOCKS if inputs % size == 0), None)
        if block is None:
            return MatrixForm("int8", "int8", None)
        return MatrixForm(f"int4 in blocks of {block}", "int4", block)
    return MatrixForm(choice, "fp8" if choice == "fp8" else "int8", None)


def _own_form(blocks: Blocks, request: WeightRequest) -> MatrixForm | None:
    """Return the form that takes over a checkpoint's own blocks, or None."""
    block, free = blocks.block, request.free
    if block > BLOCKS[0]:  # its parts have the same scale
        block = next((size for size in BLOCKS if block % size == 0), 0)
    if blocks.bits <= 4 and block in BLOCKS and request.has_int4:
        centred = isinstance(blocks.zero_points, int) and blocks.zero_points == 8
        # A scale below zero is turned round, which moves the zero point by one.
        plain = centred and blocks.minimum is None and free
        return MatrixForm(blocks.kind, "int4", block, not plain, True, blocks.order)
    if free and block:
        plain = isinstance(blocks.zero_points, int) and blocks.minimum is None
        return MatrixForm(blocks.kind, "int8", block, not plain, True, blocks.order)
    return None


def numbers(
    weights: Weights, name: str, transposed: bool, form: MatrixForm, dtype: Any, free: bool
) -> Iterator[Numbers]:
    """Yield a matrix in its form, a few outputs at a time.

    Args:
        weights: of the checkpoint.
        name: of the parameter.
        transposed: whether it is stored as [K, N].
        form: from `choose_form`.
        dtype: of scales and offsets: the graph's precision.
        free: see `Device.dequantises_freely`.
    """
    if form.own:
        for blocks, reference in weights.blocks(name) or ():
            yield _taken_over(blocks, reference, form, dtype, free)
        return
    matrix = weights[name].float().numpy()
    matrix = matrix.T if transposed else matrix
    count = max(1, CHUNK // matrix.shape[1])
    for start in range(0, len(matrix), count):
        part = np.ascontiguousarray(matrix[start : start + count])
        yield Numbers(*rounded(part, form, dtype), None, part)


def rounded(
    matrix: NDArray[np.float32], form: MatrixForm, dtype: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Round a matrix [n, K] to the nearest values; return them and their scales [n, blocks].

    The scale of a block of int4 is the one of a few with the smallest squared error: clipping the
    largest weight a little brings all others closer.
    """
    stored, largest = form.stored, LARGEST[form.stored]
    parts = matrix.reshape(len(matrix), form.blocks(matrix.shape[1]), -1)
    widest = np.abs(parts).max(axis=2, keepdims=True) / largest
    best: NDArray[Any] = _storable(widest, dtype)
    if stored == "int4":
        least = np.full_like(widest, np.inf)
        for share in _SHRINK:
            scale = _storable(widest * share, dtype)
            wide = scale.astype(np.float32)
            steps = np.rint(parts / wide).clip(-8, 7)
            error = ((steps * wide - parts) ** 2).sum(axis=2, keepdims=True)
            best = np.where(error < least, scale, best)
            least = np.minimum(error, least)
    ratio = parts / best.astype(np.float32)
    ratio = ratio.clip(-8 if stored == "int4" else -largest, largest)
    values = (ratio if stored == "fp8" else np.rint(ratio)).reshape(matrix.shape)
    return values.astype(DTYPES[stored]), best[:, :, 0]


def _storable(scale: NDArray[np.float32], dtype: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.maximum(scale, _SMALLEST_SCALE).astype(dtype)
    return array


def _taken_over(
    blocks: Blocks, reference: NDArray[np.float32], form: MatrixForm, dtype: Any, free: bool
) -> Numbers:
    """Return a checkpoint's own numbers around zero."""
    assert form.block is not None
    repeats = blocks.block // form.block
    scales = blocks.scales.numbers()
    zero: Any = blocks.zero_points
    middle = zero if isinstance(zero, int) and not form.has_offset else 1 << blocks.bits - 1
    middle = 8 if form.stored == "int4" else middle
    values = blocks.values.astype(np.int16) - np.int16(middle)
    offsets = scales * (np.float32(middle) - np.asarray(zero, dtype=np.float32))
    if blocks.minimum is not None:
        offsets = offsets - blocks.minimum.numbers()
    turned = scales < 0
    if turned.any() and not (free and form.stored == "int4"):
        each = turned.repeat(blocks.block, axis=1)
        if form.stored == "int4":  # -8 to 7, read backwards, is -8 to 7 and one more
            values = np.where(each, -values - 1, values)
            offsets = np.where(turned, offsets - scales, offsets)
        else:
            values = np.where(each, -values, values)
        scales = np.abs(scales)
    return Numbers(
        values.astype(np.int8).astype(DTYPES[form.stored]),
        scales.repeat(repeats, axis=1).astype(dtype),
        offsets.repeat(repeats, axis=1).astype(dtype) if form.has_offset else None,
        reference,
    )


def matrix_of(
    values: NDArray[Any], scales: NDArray[Any], offsets: NDArray[Any] | None, form: MatrixForm
) -> NDArray[np.float32]:
    """Return the weights [n, K] that numbers stand for, in the layer's order of inputs."""
    wide = values.astype(np.float32).reshape(*scales.shape, -1)
    wide *= scales.astype(np.float32)[:, :, None]
    if offsets is not None:
        wide += offsets.astype(np.float32)[:, :, None]
    matrix: NDArray[np.float32] = wide.reshape(values.shape)
    return matrix if form.order is None else matrix[:, np.argsort(form.order)]
