"""The weights of a graph that was written: what its quantised matrices are in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch

from ...models.weights.weights import CHUNK, ChangedWeights, Weights
from .packing import Form


@dataclass(frozen=True)
class Place:
    """Where a graph holds a quantised matrix.

    Attributes:
        stem: what the names of its parts begin with.
        rows: its outputs among those of the parts.
        form: of the parts.
        order: int64 [K], its own order of inputs; None for the layer's.
    """

    stem: str
    rows: slice
    form: Form
    order: Any


class WrittenWeights(ChangedWeights):
    """A checkpoint's weights, the quantised ones read back from a graph's data file.

    Args:
        graph: path of the graph.
        places: of its quantised matrices, by the name of the parameter.
        weights: of the checkpoint.
        transposed: matrices that the module stores as [K, N].
    """

    def __init__(
        self,
        graph: Path,
        places: Mapping[str, Place],
        weights: Weights,
        transposed: frozenset[str],
    ) -> None:
        super().__init__(weights)
        self._values = onnx_ir.load(graph).graph.initializers
        self._places = places
        self._transposed = transposed

    def __getitem__(self, name: str) -> torch.Tensor:
        place = self._places.get(name)
        if place is None:
            return super().__getitem__(name)
        form = place.form
        outputs = place.rows.stop - place.rows.start
        whole = np.empty((outputs, form.inputs), dtype=np.float32)
        values = {
            part: self._values[f"{place.stem}_{part}"].const_value for part in form.shapes(outputs)
        }
        parts = {part: value.numpy()[place.rows] for part, value in values.items()}
        for start in range(0, outputs, max(1, CHUNK // form.inputs)):
            rows = slice(start, start + max(1, CHUNK // form.inputs))
            whole[rows] = form.unpack({part: each[rows] for part, each in parts.items()}).matrix()
        del parts
        for value in values.values():  # what was read stays in memory while the file is mapped
            if isinstance(value, onnx_ir.ExternalTensor):
                value.release()
        if place.order is not None:
            whole = whole[:, np.argsort(place.order)]
        return torch.from_numpy(whole.T if name in self._transposed else whole)
