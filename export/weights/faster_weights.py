"""Quantised matrices in forms that ONNX Runtime multiplies faster, by the role of their model.

The operator stores values of 5 and 6 bits in 8. Of a target, those get one scale for 128 inputs instead
of 16 or 32, and the unused bits keep the numbers: they move by at most 1/254 of the largest weight of
their block. Values of 4 and 8 bits stay as they are, since they have no unused bits.

Where speed counts more than disk, 4-bit values of a target take 8 bits in blocks of 128 too (`wide`):
half as much again to store, and fewer scales, no minima and no unpacking in each product. Loaded, the
target of the real pair takes less memory so than in 4 bits, whose scales and minima become fp32.

A draft only proposes, so values of more than 4 bits are rounded to 4: each step reads half as much.
Plain rounding is enough. On Qwen2.5-Coder 0.5B the scales of least square error, and blocks of 32,
were accepted no more often.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...models.weights.blocks import Blocks, Factors
from ...models.weights.weights import ChangedWeights, Stored, Weights

if TYPE_CHECKING:
    pass

LARGEST_BLOCK = 128
"""Inputs that share a scale. A pass takes three quarters of the time that blocks of 32 take."""


class FasterWeights(ChangedWeights):
    """A checkpoint's weights, of which some quantised matrices are stored in other blocks.

    As a mapping it gives the checkpoint's own numbers.

    Args:
        weights: of the checkpoint.
        role: target or draft.
        products: names of the matrices that products read.
        looked_up: names of those that are embeddings too: a draft keeps 8 bits of them.
        wide: a target's values of 4 bits take 8 too.
    """

    def __init__(
        self,
        weights: Weights,
        role: str,
        products: Collection[str],
        looked_up: Collection[str] = (),
        *,
        wide: bool = False,
    ) -> None:
        super().__init__(weights)
        self._role = role
        self._products = products
        self._looked_up = looked_up
        self._wide = wide

    def blocks(self, name: str) -> Iterator[Stored] | None:
        """Return a matrix as it is stored, and the checkpoint's numbers; see the base class."""
        stored = self._weights.blocks(name)
        if stored is None or not self.moves(name):
            return stored
        bits = self._bits(name)
        return ((faster(blocks, bits), reference) for blocks, reference in stored)

    def sample(self, name: str) -> Blocks | None:
        """Return the first outputs of a matrix as it is stored; see the base class."""
        blocks = self._weights.sample(name)
        return faster(blocks, self._bits(name)) if blocks and self.moves(name) else blocks

    def moves(self, name: str) -> bool:
        """Return whether a matrix is stored in other numbers than the checkpoint's."""
        blocks = self._weights.sample(name) if name in self._products else None
        if blocks is None:
            return False
        if self._role == "draft" and blocks.bits > self._bits(name):
            return True
        is_wider = self._role == "target" and self._wide and blocks.bits < 8
        return is_wider or (blocks.bits in (5, 6) and block_of(blocks.shape[1]) > blocks.block)

    def _bits(self, name: str) -> int:
        return 4 if self._role == "draft" and name not in self._looked_up else 8


def faster(blocks: Blocks, bits: int) -> Blocks:
    """Return a matrix in 4 or 8 bits and the largest blocks, each block rounded plainly."""
    outputs, inputs = blocks.shape
    block = block_of(inputs)
    numbers = replace(blocks, order=None).matrix().reshape(outputs, -1, block)
    with np.errstate(invalid="ignore", over="ignore"):  # the gate refuses what is not finite
        scales, zeros = _signed(numbers) if bits == 8 else _between(numbers)
        values = numbers / scales.astype(np.float32)[:, :, None]
        values += zeros[:, :, None]
        np.rint(values, out=values)
        np.clip(values, 0, (1 << bits) - 1, out=values)
        integers = values.astype(np.uint8).reshape(outputs, inputs)
    return Blocks(
        f"{blocks.kind} in {bits} bits, blocks of {block}",
        bits,
        block,
        integers,
        Factors((scales[:, :, None],)),
        128 if bits == 8 else zeros.astype(np.uint8),
        order=blocks.order,
    )


def block_of(inputs: int) -> int:
    """Return the largest block that divides the inputs of a matrix."""
    return min(inputs & -inputs, LARGEST_BLOCK)


def _signed(numbers: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return scales of values around 128, as they are stored, and the zero points."""
    scales = _stored(np.abs(numbers).max(axis=2) / 127)
    return scales, np.full(scales.shape, 128, dtype=np.float32)


def _between(numbers: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return scales of values from the smallest weight to the largest, and the zero points."""
    low = np.minimum(numbers.min(axis=2), 0)
    scales = _stored((np.maximum(numbers.max(axis=2), 0) - low) / 15)
    return scales, np.clip(np.rint(-low / scales.astype(np.float32)), 0, 15)


def _stored(scales: NDArray[np.float32]) -> NDArray[np.float16]:
    half = scales.astype(np.float16)
    half[half == 0] = 1  # a block of zeros, or of numbers below half precision
    return half
