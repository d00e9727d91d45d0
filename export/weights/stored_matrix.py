"""A quantised matrix in a graph: its parts as initializers, and what is computed from them.

Scales and minima are stored as their author did, in half precision and small integers. What the graph
makes of constants ONNX Runtime computes once, when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from ...errors import GateError
from ...models.weights.weights import Stored, Weights
from ...runtime.bundle.manifest import KeptWeights
from .packing import Form, Parts, fill
from .products import add_constant

FLOAT = onnx_ir.DataType.FLOAT


class Nodes:
    """New nodes in order."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self.nodes: list[Any] = []

    def add(self, op: str, inputs: Sequence[Any], domain: str = "", **attributes: Any) -> Any:
        """Add a node with one output and return the output."""
        node = onnx_ir.node(op, inputs, attributes=attributes, domain=domain)
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: Any) -> Any:
        """Return a value as float32."""
        return self.add("Cast", [value], to=FLOAT.value)

    def reshape(self, value: Any, shape: Sequence[int]) -> Any:
        """Return a value in another shape; 0 keeps a size."""
        return self.add("Reshape", [value, self.integers(*shape)])

    def integers(self, *numbers: int) -> Any:
        """Return an int64 constant."""
        return self.constant(np.array(numbers, dtype=np.int64), "_".join(map(str, numbers)))

    def constant(self, array: Any, name: str) -> Any:
        """Return a small constant; equal names stand for equal ones."""
        name = f"{array.dtype}_{name}".replace("-", "m").replace(".", "p")
        known = self._graph.initializers.get(name)
        return add_constant(self._graph, name, array) if known is None else known


@dataclass
class Fidelity:
    """How the weights of a kind are stored.

    Attributes:
        tensors: matrices.
        weights: numbers in them.
        bits: that they take on the disk.
        max_error: largest difference of a weight from what the author's library makes of it, as a share
            of the largest weight of its matrix; 0 is bit for bit.
    """

    tensors: int = 0
    weights: int = 0
    bits: int = 0
    max_error: float = 0.0


@dataclass
class Ledger:
    """What was written, by kind; filled while the weights are written."""

    kinds: dict[str, Fidelity] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)

    def count(self, name: str, kind: str, weights: int, bits: int, error: float) -> None:
        """Add a matrix; small ones are computed again for each of their parts."""
        if name in self._counted:
            return
        self._counted.add(name)
        entry = self.kinds.setdefault(kind, Fidelity())
        entry.tensors += 1
        entry.weights += weights
        entry.bits += bits
        entry.max_error = max(entry.max_error, error)

    def entries(self) -> tuple[KeptWeights, ...]:
        """Return what the manifest says of the kinds."""
        return tuple(
            KeptWeights(
                kind=kind,
                tensors=each.tensors,
                weights=each.weights,
                bits_per_weight=round(each.bits / each.weights, 3),
                max_error=each.max_error,
            )
            for kind, each in self.kinds.items()
        )


def form_of(weights: Weights, name: str) -> tuple[Form, Any] | None:
    """Return the form of a quantised matrix and its order of inputs, or None for other tensors."""
    blocks = weights.sample(name) if name in weights else None
    return None if blocks is None else (Form.of(blocks), blocks.order)


def packed_parts(
    form: Form, names: Sequence[str], outputs: int, weights: Weights, ledger: Ledger
) -> Parts:
    """Read matrices, pack them one below the other, and compare what is packed with their reference."""

    def one(name: str, stored: Iterable[Stored]) -> Iterator[Parts]:
        error, largest, count, size = 0.0, 0.0, 0, 0
        for blocks, reference in stored:
            parts = form.pack(blocks)
            back = form.unpack(parts).matrix()
            if blocks.order is not None:
                back = back[:, np.argsort(blocks.order)]
            error = max(error, float(np.abs(back - reference).max(initial=0)))
            largest = max(largest, float(np.abs(reference).max(initial=0)))
            count += reference.size
            size += sum(array.nbytes for array in parts.values())
            yield parts
        if not np.isfinite(largest):
            raise GateError(
                f"{name} holds weights that are not finite", hint="the checkpoint is damaged"
            )
        share = error / largest if largest else 0.0
        ledger.count(name, form.kind, count, size * 8, share)

    def every() -> Iterator[Parts]:
        for name in names:
            stored = weights.blocks(name)
            assert stored is not None
            yield from one(name, stored)

    return fill(form, outputs, every())


def scales_of(nodes: Nodes, form: Form, parts: dict[str, Any]) -> Any:
    """Return the scales, float32 [N, blocks]."""
    return _product(nodes, form, [parts[f"scale_{i}"] for i in range(len(form.scales))])


def offsets_of(nodes: Nodes, form: Form, parts: dict[str, Any], scales: Any) -> Any:
    """Return what every weight of a block has beside the operator's own, float32 [N, blocks]."""
    minima = _product(nodes, form, [parts[f"minimum_{i}"] for i in range(len(form.minima))])
    centre = nodes.constant(np.array(form.centre, dtype=np.float32), str(form.centre))
    return nodes.add("Sub", [nodes.add("Mul", [scales, centre]), minima])


def _product(nodes: Nodes, form: Form, factors: Sequence[Any]) -> Any:
    wide = [nodes.cast(each) if each.dtype != FLOAT else each for each in factors]
    product = wide[0]
    for each in wide[1:]:
        product = nodes.add("Mul", [product, each])
    return nodes.reshape(product, [0, form.blocks])
