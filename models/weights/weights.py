"""The weights of a checkpoint by the name of the module's parameter, each read when it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20
"""Weights that are unpacked at a time: what a processor's cache holds is several times faster."""


Stored: TypeAlias = "tuple[Blocks, NDArray[np.float32]]"
"""Some outputs of a matrix in their own numbers, and what their author's library makes of them."""


class Weights(Mapping[str, "torch.Tensor"]):
    """Weights in their files. As a mapping it gives each tensor as floating-point numbers.

    A tied weight is found under both of its names.

    Args:
        shapes: of all tensors, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without reading it

    @abstractmethod
    def kind(self, name: str) -> str:
        """Return the format that a tensor is stored in, such as Q4_K or BF16."""

    def blocks(self, name: str) -> Iterator[Stored] | None:
        """Return a quantised matrix in its own numbers, a few outputs at a time; None for others.

        All parts agree in kind, bits, block, and which of the optional arrays they have.
        """
        return None

    def sample(self, name: str) -> Blocks | None:
        """Return the first outputs of a quantised matrix, which show its form; None for others."""
        stored = self.blocks(name)
        return None if stored is None else next(stored)[0]


class ChangedWeights(Weights):
    """The weights of a checkpoint, of which a subclass gives some in another form.

    Args:
        weights: of the checkpoint.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights.shapes)
        self._weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def kind(self, name: str) -> str:
        """Return the format that the checkpoint stores a tensor in."""
        return self._weights.kind(name)
