"""Full-precision matrices as integers in blocks of inputs, one matrix at a time.

Four bits: of several scales of a block the one with the smallest error is taken. The error of an input
counts by the mean square of its activations (llama.cpp's importance matrix). Zero points are whole
numbers, because the operator is some twenty times slower with fractions. With whole ones ONNX Runtime's
quantisers are no better than plain rounding: HQQ and GPTQ give the same numbers, and those of k-quant
are further off; see docs/weights.md. Eight bits are rounded plainly: what is left to gain is too small
for a text to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ...models.weights.blocks import Blocks, Factors
from ...models.weights.weights import CHUNK, ChangedWeights, Stored, Weights

if TYPE_CHECKING:
    pass

Bits = Literal[4, 8]
Importance = Mapping[str, NDArray[np.float32]]

LARGEST_BLOCK: dict[Bits, int] = {4: 32, 8: 128}
_SMALLEST_BLOCK = 16
_METHOD: dict[Bits, str] = {4: "by activations", 8: "rounded"}
_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72)
"""Of a block's range: scales that are tried. Values beyond a range are cut off."""


def block_of(bits: Bits, inputs: int) -> int | None:
    """Return how many inputs share a scale; None for matrices that blocks do not divide."""
    block = min(inputs & -inputs, LARGEST_BLOCK[bits])
    return block if block >= _SMALLEST_BLOCK else None


def quantise(
    matrix: NDArray[np.float32], bits: Bits, importance: NDArray[np.float32] | None = None
) -> Blocks:
    """Return a matrix [N, K] in integers; each output is quantised on its own.

    Scales are stored in half precision, and values are rounded by what is stored.

    Args:
        matrix: float32 [N, K].
        bits: of a value.
        importance: float32 [K], the weight of each input's squared error; None for equal ones.
    """
    outputs, inputs = matrix.shape
    block = block_of(bits, inputs)
    assert block is not None
    parts = matrix.reshape(outputs, -1, block)
    zeros: int | NDArray[np.uint8] = 128
    if bits == 4:
        weight = np.ones(inputs, dtype=np.float32) if importance is None else importance
        scales, zeros, values = _searched(parts, weight.reshape(-1, block))
    else:
        scales = _stored(np.abs(parts).max(axis=2) / 127)
        values = np.rint(parts / scales.astype(np.float32)[:, :, None]) + 128
        np.clip(values, 0, 255, out=values)
    return Blocks(
        f"int{bits} ({_METHOD[bits]}, blocks of {block})",
        bits,
        block,
        values.reshape(outputs, inputs).astype(np.uint8),
        Factors((scales[:, :, None],)),
        zeros,
    )


def _searched(
    parts: NDArray[np.float32], importance: NDArray[np.float32]
) -> tuple[NDArray[np.float16], NDArray[np.uint8], NDArray[np.float32]]:
    """Return scales and zero points [N, blocks], and values [N, blocks, block]."""
    low = np.minimum(parts.min(axis=2), 0)
    span = np.maximum(parts.max(axis=2), 0) - low
    shape = span.shape
    best = np.full(shape, np.inf, dtype=np.float32)
    scales, zeros = np.ones(shape, dtype=np.float16), np.zeros(shape, dtype=np.float32)
    chosen = np.zeros(parts.shape, dtype=np.float32)
    for share in _SHARES:
        stored = _stored(span * np.float32(share / 15))
        scale = stored.astype(np.float32)
        zero = np.rint(low * np.float32(-share) / scale).clip(0, 15)
        values = parts / scale[:, :, None]
        np.rint(values, out=values)
        values += zero[:, :, None]
        np.clip(values, 0, 15, out=values)
        off = values - zero[:, :, None]
        off *= scale[:, :, None]
        off -= parts
        np.square(off, out=off)
        error = np.einsum("nbi,bi->nb", off, importance)
        better = error < best
        best[better], scales[better], zeros[better] = error[better], stored[better], zero[better]
        chosen[better] = values[better]
    return scales, zeros.astype(np.uint8), chosen


def _stored(scales: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return scales as they are stored; those of zeros, or below half precision, become 1."""
    stored: NDArray[np.float16] = scales.astype(np.float16)
    stored[stored == 0] = 1
    return stored


class QuantisedWeights(ChangedWeights):
    """A checkpoint's weights, of which some matrices are quantised when they are asked for.

    As a mapping it gives the checkpoint's own numbers. Matrices that the checkpoint brought in
    integers stay as they are.

    Args:
        weights: of the checkpoint.
        recipe: bits of each matrix to quantise, by the name of its parameter.
        transposed: matrices that are stored as [K, N].
        importance: of the inputs of matrices, by name; see `quantise`.
    """

    def __init__(
        self,
        weights: Weights,
        recipe: Mapping[str, Bits],
        transposed: frozenset[str],
        importance: Importance,
    ) -> None:
        super().__init__(weights)
        self._importance = importance
        self._recipe = recipe
        self._transposed = transposed

    def blocks(self, name: str) -> Iterator[Stored] | None:
        """Return a quantised matrix, and what it was before; see the base class."""
        own = self._weights.blocks(name)
        if own is not None or name not in self._recipe:
            return own
        return self._quantised(name)

    def sample(self, name: str) -> Blocks | None:
        """Return blocks of the matrix's form without reading its numbers; see the base class."""
        if name not in self._recipe or self._weights.blocks(name) is not None:
            return self._weights.sample(name)
        inputs = self.shapes[name][0 if name in self._transposed else 1]
        return quantise(np.zeros((1, inputs), dtype=np.float32), self._recipe[name])

    def _quantised(self, name: str) -> Iterator[Stored]:
        for part in rows_of(self._weights, name, name in self._transposed):
            yield quantise(part, self._recipe[name], self._importance.get(name)), part


def rows_of(weights: Weights, name: str, is_transposed: bool) -> Iterator[NDArray[np.float32]]:
    """Yield the outputs of a matrix [N, K], a few at a time."""
    matrix = weights[name].T if is_transposed else weights[name]
    outputs, inputs = matrix.shape
    count = max(1, CHUNK // inputs)
    for start in range(0, outputs, count):
        yield np.ascontiguousarray(matrix[start : start + count].float().numpy())
