"""Quantised matrices as ONNX Runtime's MatMulNBits reads them, and back.

The operator computes scale * (value - zero_point) for each block of inputs, from values of 4 or 8 bits
that lie one after the other, two of 4 bits in a byte, the first in its low half. Where a matrix has no
zero points of its own, the stored values are moved so that the operator's default, the middle, is zero:
that needs no array, and it keeps values small in the middle, where the kernel's rounding of the
activations to int8 costs least. What the middle and a block's minimum then add to every weight of a
block is the offset:

    scale * (value - zero) - minimum = scale * (stored - middle) + offset
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.weights.blocks import Blocks, Factors

Parts = dict[str, NDArray[Any]]

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256
"""Blocks that the operator takes: powers of two between these."""


@dataclass(frozen=True)
class Form:
    """How a matrix is stored; matrices of one form that read the same activations become one.

    Attributes:
        kind: what its author calls the format.
        value_bits: width of a value: 4, 5, 6 or 8.
        block: inputs that share a scale.
        inputs: of the matrix.
        zero: the zero point of all blocks; None where each block has its own.
        scales: type and shape of one output's part of each factor of the scale.
        minima: the same of the minimum; empty without one.
        is_split: whether values of 5 and 6 bits are stored as their low four bits and, apart from
            them, their high ones. The operator cannot read that, a lookup of rows can.
    """

    kind: str
    value_bits: int
    block: int
    inputs: int
    zero: int | None
    scales: tuple[tuple[str, tuple[int, ...]], ...]
    minima: tuple[tuple[str, tuple[int, ...]], ...]
    is_split: bool = False

    @classmethod
    def of(cls, blocks: Blocks) -> Form:
        """Return the form that a matrix, or some outputs of one, is stored in."""
        zero = blocks.zero_points
        return cls(
            blocks.kind,
            blocks.bits,
            blocks.block,
            blocks.shape[1],
            zero if isinstance(zero, int) else None,
            _layout(blocks.scales),
            () if blocks.minimum is None else _layout(blocks.minimum),
        )

    @property
    def bits(self) -> int:
        """Width of a stored value: 4 or 8."""
        return 4 if self.value_bits <= 4 or self.is_split else 8

    @property
    def high_bits(self) -> int:
        """Bits of a value that are stored apart."""
        return self.value_bits - 4 if self.is_split else 0

    @property
    def blocks(self) -> int:
        """Blocks of an output."""
        return self.inputs // self.block

    @property
    def centre(self) -> int:
        """The value that is stored as the middle; means nothing where blocks have zero points."""
        if self.zero is None or self.minima:
            return 1 << self.value_bits - 1
        return self.zero

    @property
    def shift(self) -> int:
        """What is added to a value to store it."""
        if self.zero is None or self.is_split:
            return 0
        return (1 << self.bits - 1) - self.centre

    @property
    def has_offset(self) -> bool:
        """Whether the operator's result lacks a term of its own for each block."""
        return bool(self.minima)

    def shapes(self, outputs: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return type and shape of each part that is stored, for so many outputs."""
        of_scales = {f"scale_{i}": each for i, each in enumerate(self.scales)}
        of_minima = {f"minimum_{i}": each for i, each in enumerate(self.minima)}
        zero_points = {}
        if self.zero is None:
            zero_points["zero_points"] = ("uint8", (-(-self.blocks * self.bits // 8),))
        high = {}
        if self.is_split:
            high["high"] = ("uint8", (self.inputs * self.high_bits // 8,))
        each = {
            "packed": ("uint8", (self.blocks, self.block * self.bits // 8)),
            **high,
            **of_scales,
            **zero_points,
            **of_minima,
        }
        return {name: (dtype, (outputs, *shape)) for name, (dtype, shape) in each.items()}

    def pack(self, blocks: Blocks) -> Parts:
        """Return the parts of some outputs."""
        count = len(blocks.values)
        values = blocks.values + np.uint8(self.shift)
        low = values & 15 if self.is_split else values
        parts: Parts = {
            "packed": _packed(low, self.bits).reshape(count, self.blocks, -1),
            **{f"scale_{i}": part for i, part in enumerate(blocks.scales.parts)},
        }
        if self.is_split:
            parts["high"] = _packed(values >> 4, self.high_bits)
        if not isinstance(blocks.zero_points, int):
            parts["zero_points"] = _packed(blocks.zero_points, self.bits)
        if blocks.minimum is not None:
            parts |= {f"minimum_{i}": part for i, part in enumerate(blocks.minimum.parts)}
        return parts

    def unpack(self, parts: Parts) -> Blocks:
        """Return what `pack` was given."""
        values = _unpacked(parts["packed"].reshape(len(parts["packed"]), -1), self.bits)
        if self.is_split:
            values |= _unpacked(parts["high"], self.high_bits) << 4
        zero: int | NDArray[np.uint8] = 0
        if self.zero is None:
            zero = _unpacked(parts["zero_points"], self.bits)[:, : self.blocks]
        else:
            zero = self.zero
        minima = tuple(parts[f"minimum_{i}"] for i in range(len(self.minima)))
        return Blocks(
            self.kind,
            self.value_bits,
            self.block,
            values - np.uint8(self.shift),
            Factors(tuple(parts[f"scale_{i}"] for i in range(len(self.scales)))),
            zero,
            Factors(minima) if minima else None,
        )


def fill(form: Form, outputs: int, packed: Iterable[Parts]) -> Parts:
    """Return the parts of a whole matrix from those of some outputs at a time."""
    whole = {name: np.empty(shape, dtype) for name, (dtype, shape) in form.shapes(outputs).items()}
    start = 0
    for parts in packed:
        count = len(parts["packed"])
        for name, array in whole.items():
            array[start : start + count] = parts[name]
        start += count
    return whole


def _layout(factors: Factors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((str(part.dtype), part.shape[1:]) for part in factors.parts)


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return values [N, n] of some bits as bytes, the first in the lowest bits."""
    if bits == 8:
        return values
    width = 8 // bits
    bytes_ = np.zeros((len(values), -(-values.shape[1] // width)), dtype=np.uint8)
    for i in range(width):
        each = values[:, i::width]
        bytes_[:, : each.shape[1]] |= each << i * bits
    return bytes_


def _unpacked(bytes_: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the values [N, n] of bytes, the opposite of `_packed`."""
    if bits == 8:
        return bytes_
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values: NDArray[np.uint8] = bytes_[:, :, None] >> shifts
    values &= np.uint8((1 << bits) - 1)
    return values.reshape(len(bytes_), -1)
