"""Embeddings whose rows are unpacked when they are looked up.

A matrix that is also the head's shares its bytes. One of its own takes the bits that its author gave
it: values of 5 and 6 bits are stored as their low four and, apart from those, their high ones. Plain
operators unpack them, some fifteen on one row a token: 28 microseconds a pass, where the operator
GatherBlockQuantized takes 7 but has neither 5 nor 6 bits nor minima.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir

from ...models.weights.weights import Weights
from .block_products import PREFIX, BlockProducts
from .packing import Form
from .stored_matrix import Nodes, form_of


def replace_embeddings(model: Any, weights: Weights, products: BlockProducts) -> None:
    """Replace lookups in quantised matrices, in place."""
    for node in list(model.graph):
        if node.op_type != "Gather" or not node.inputs[0].is_initializer():
            continue
        name = str(node.inputs[0].name).removeprefix(PREFIX)
        found = products.forms.get(name) or form_of(weights, name)
        if found is None:
            continue
        form, order = found
        if name not in products.forms:
            form = replace(form, is_split=form.value_bits in (5, 6))
        parts = products.stored({name: int(node.inputs[0].shape[0])}, form, order)
        nodes = Nodes(model.graph)
        rows = _rows(nodes, form, parts, node.inputs[1])
        if order is not None:
            back = nodes.constant(np.argsort(order), f"order_of_{name}")
            rows = nodes.add("Gather", [rows, back], axis=-1)
        onnx_ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes.nodes, node.outputs, [rows]
        )


def _rows(nodes: Nodes, form: Form, parts: dict[str, Any], ids: Any) -> Any:
    """Return rows [1, S, K] of a matrix for ids [1, S]."""
    blocks = [0, 0, form.blocks, form.block]
    row = {name: nodes.add("Gather", [part, ids], axis=0) for name, part in parts.items()}
    values = _unpacked(nodes, row["packed"], form.bits, blocks)
    if form.is_split:
        high = _unpacked(nodes, row["high"], form.high_bits, blocks)
        four = nodes.constant(np.array(4, dtype=np.uint8), "4")
        high = nodes.add("BitShift", [high, four], direction="LEFT")
        values = nodes.add("BitwiseOr", [values, high])
    if form.zero is None:
        points = _unpacked(nodes, row["zero_points"], form.bits, [0, 0, -1])
        count = [nodes.integers(n) for n in (0, form.blocks, -1)]
        zero = nodes.reshape(nodes.cast(nodes.add("Slice", [points, *count])), [0, 0, -1, 1])
    else:
        stored = form.zero + form.shift
        zero = nodes.constant(np.array(stored, dtype=np.float32), str(stored))
    weights = nodes.add("Sub", [nodes.cast(values), zero])
    weights = nodes.add("Mul", [weights, _numbers(nodes, form, row, "scale", len(form.scales))])
    if form.minima:
        minima = _numbers(nodes, form, row, "minimum", len(form.minima))
        weights = nodes.add("Sub", [weights, minima])
    return nodes.reshape(weights, [0, 0, form.inputs])


def _unpacked(nodes: Nodes, bytes_: Any, bits: int, shape: Sequence[int]) -> Any:
    """Return values of some bits, of which the first of a byte is in its lowest bits."""
    if bits < 8:
        places = np.arange(0, 8, bits, dtype=np.uint8)
        shifts = nodes.constant(places, f"places_{bits}")
        mask = nodes.constant(np.array((1 << bits) - 1, dtype=np.uint8), str((1 << bits) - 1))
        apart = nodes.add("Unsqueeze", [bytes_, nodes.integers(-1)])
        moved = nodes.add("BitShift", [apart, shifts], direction="RIGHT")
        bytes_ = nodes.add("BitwiseAnd", [moved, mask])
    return nodes.reshape(bytes_, shape)


def _numbers(nodes: Nodes, form: Form, row: dict[str, Any], name: str, count: int) -> Any:
    """Return the products of the factors of rows, one for each block."""
    product = nodes.cast(row[f"{name}_0"])
    for i in range(1, count):
        product = nodes.add("Mul", [product, nodes.cast(row[f"{name}_{i}"])])
    return nodes.reshape(product, [0, 0, form.blocks, 1])
