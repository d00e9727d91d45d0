"""A quantised matrix as integers in blocks of inputs, with all that its author stored about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Factors:
    """Numbers, one for each block, as the product of what is stored.

    Attributes:
        parts: arrays [N, groups, blocks of a group]; they broadcast to the numbers of all blocks.
    """

    parts: tuple[NDArray[Any], ...]

    def numbers(self) -> NDArray[np.float32]:
        """Return the products, float32 [N, blocks]."""
        wide = (part.astype(np.float32) for part in self.parts)
        product: NDArray[np.float32] = reduce(np.multiply, wide)
        return product.reshape(len(product), -1)

    def rows(self, index: Any) -> Factors:
        """Return the numbers of some rows, in that order."""
        return Factors(tuple(np.ascontiguousarray(part[index]) for part in self.parts))


@dataclass(frozen=True)
class Blocks:
    """A matrix of N outputs and K inputs in integers.

    weight[n, k] = scale[n, b] * (value[n, k] - zero_point[n, b]) - minimum[n, b], with b = k // block

    Attributes:
        kind: what its author calls the format, such as Q4_K.
        bits: width of a value: 4, 5, 6 or 8.
        block: inputs that share a scale.
        values: uint8 [N, K], one value a byte.
        scales: of the blocks.
        zero_points: one for all blocks, or uint8 [N, blocks].
        minimum: subtracted from every weight of a block; None for zero.
        order: int64 [K]; input k of this matrix is input order[k] of the layer. None for the same.
    """

    kind: str
    bits: int
    block: int
    values: NDArray[np.uint8]
    scales: Factors
    zero_points: int | NDArray[np.uint8] = 0
    minimum: Factors | None = None
    order: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs N and inputs K."""
        outputs, inputs = self.values.shape
        return outputs, inputs

    def rows(self, index: Any) -> Blocks:
        """Return some of the outputs, in that order."""
        zero_points = self.zero_points
        return replace(
            self,
            values=np.ascontiguousarray(self.values[index]),
            scales=self.scales.rows(index),
            zero_points=zero_points if isinstance(zero_points, int) else zero_points[index],
            minimum=None if self.minimum is None else self.minimum.rows(index),
        )

    def matrix(self) -> NDArray[np.float32]:
        """Return the weights, float32 [N, K], in the layer's own order of inputs."""
        outputs, inputs = self.shape
        zero_points = self.zero_points
        values = self.values.reshape(outputs, -1, self.block).astype(np.float32)
        values -= zero_points if isinstance(zero_points, int) else zero_points[:, :, None]
        values *= self.scales.numbers()[:, :, None]
        if self.minimum is not None:
            values -= self.minimum.numbers()[:, :, None]
        matrix = values.reshape(outputs, inputs)
        return matrix if self.order is None else matrix[:, np.argsort(self.order)]
