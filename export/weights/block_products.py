"""Products by quantised matrices: ONNX Runtime's MatMulNBits.

Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir

from ...models.weights.weights import Weights
from .packing import Form
from .products import CONTRIB, LazyWeights, Product, group_products, replace_group
from .stored_matrix import Ledger, Nodes, form_of, offsets_of, packed_parts, scales_of
from .written_weights import Place

COMPUTE_IN_INT8 = 4
"""accuracy_level: activations are rounded to int8 by row and block inside the kernel. In fp32 (level 0)
passes of several tokens take three times as long in 4 bits, and hundred times in 8."""

PREFIX = "module."
"""What comes before a parameter's name in the graph."""


class BlockProducts:
    """Replaces products by those that read quantised matrices.

    Args:
        model: the onnx_ir model.
        weights: of the checkpoint.
        ledger: what is written is counted there.

    Attributes:
        forms: of the matrices that products read, by name, with their order of inputs.
        places: of all quantised matrices, by name.
    """

    def __init__(self, model: Any, weights: Weights, ledger: Ledger) -> None:
        self._model = model
        self._weights = weights
        self._ledger = ledger
        self._lazy = LazyWeights(model.graph)
        self._made: dict[Any, Any] = {}
        self.forms: dict[str, tuple[Form, Any]] = {}
        self.places: dict[str, Place] = {}

    def replace(self, products: Sequence[Product]) -> None:
        """Replace the products of quantised matrices; others stay as they are."""
        kept = []
        for product in products:
            name = _name(product)
            found = form_of(self._weights, name)
            if found is not None:
                self.forms[name] = found
                kept.append(product)
        for group in group_products(kept, self._key):
            self._replace(group, *self.forms[_name(group[0])])

    def _key(self, product: Product) -> Hashable:
        """Return what products that become one must have in common."""
        form, order = self.forms[_name(product)]
        return form, None if order is None else order.tobytes()

    def stored(self, sizes: Mapping[str, int], form: Form, order: Any) -> dict[str, Any]:
        """Return the initializers of matrices, one below the other, by part.

        Args:
            sizes: outputs of each matrix, by name.
            form: of all of them.
            order: of their inputs, or None.
        """
        names, outputs = list(sizes), sum(sizes.values())
        shapes = {
            name: (onnx_ir.DataType[_TYPES[dtype]], shape)
            for name, (dtype, shape) in form.shapes(outputs).items()
        }
        first = f"{PREFIX}{names[0]}" + ("_and_others" if len(names) > 1 else "")
        start = 0
        for name, size in sizes.items():
            self.places[name] = Place(first, slice(start, start + size), form, order)
            start += size
        compute = partial(packed_parts, form, names, outputs, self._weights, self._ledger)
        return self._lazy.add(tuple(names), first, shapes, compute)

    def _replace(self, group: list[Product], form: Form, order: Any) -> None:
        sizes = {_name(product): product.size[1] for product in group}
        outputs = sum(sizes.values())
        parts = self.stored(sizes, form, order)
        nodes = Nodes(self._model.graph)
        scales = scales_of(nodes, form, parts)
        activations = self._ordered(nodes, group[0].node.inputs[0], order)
        inputs = [activations, parts["packed"], scales]
        if form.zero is None:
            inputs.append(parts["zero_points"])
        result = nodes.add(
            "MatMulNBits",
            inputs,
            domain=CONTRIB,
            K=form.inputs,
            N=outputs,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=COMPUTE_IN_INT8,
        )
        if form.has_offset:
            offsets = offsets_of(nodes, form, parts, scales)
            turned = nodes.add("Transpose", [offsets], perm=[1, 0])
            sums = self._block_sums(nodes, activations, form)
            result = nodes.add("Add", [result, nodes.add("MatMul", [sums, turned])])
        replace_group(self._model, group, nodes.nodes, result)

    def _ordered(self, nodes: Nodes, activations: Any, order: Any) -> Any:
        """Return activations in a matrix's own order of inputs."""
        if order is None:
            return activations
        key = (activations, order.tobytes())
        if key not in self._made:
            name = f"order_{len(self._made)}"
            index = nodes.constant(np.asarray(order, dtype=np.int64), name)
            self._made[key] = nodes.add("Gather", [activations, index], axis=-1)
            self._made[key].shape = activations.shape
        return self._made[key]

    def _block_sums(self, nodes: Nodes, activations: Any, form: Form) -> Any:
        """Return the sum of each block of the activations."""
        key = (activations, form.block)
        if key not in self._made:
            rank = 3 if activations.shape is None else len(activations.shape)
            blocks = nodes.reshape(activations, [*[0] * (rank - 1), form.blocks, form.block])
            self._made[key] = nodes.add("ReduceSum", [blocks, nodes.integers(-1)], keepdims=0)
        return self._made[key]


def _name(product: Product) -> str:
    """Return the parameter that a product reads."""
    return str(product.weight.name).removeprefix(PREFIX)


_TYPES = {
    "uint8": "UINT8",
    "int8": "INT8",
    "float16": "FLOAT16",
    "float32": "FLOAT",
}
