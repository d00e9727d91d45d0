"""Compute the head for the last rows of a forward pass only: as many as `logits_to_keep`.

Reading a prompt needs the logits of its last token only, and the loop needs those of the drafted block.
Each row of logits costs a product with the whole head and several arrays as wide as the vocabulary: for
512 tokens and 128,000 words, 262 MB each. The input `logits_to_keep` [1] int64 is optional; by default
every row is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from .weights.products import add_constant

LOGITS_TO_KEEP = "logits_to_keep"

_ROWS_AXIS = 1
_ALL = 2**31 - 1


def cut_head(model: Any) -> None:
    """Insert a Slice before the head, and before other inputs that have a row per token; in place."""
    graph = model.graph
    hidden = next(value for value in graph.outputs if value.name == "hidden")
    producer = hidden.producer()
    if producer.op_type == "Cast":  # the head itself reads half precision
        hidden = producer.inputs[0]
    full, kept = hidden.shape[_ROWS_AXIS], onnx_ir.SymbolicDim(f"{LOGITS_TO_KEEP}_kept")
    wanted, end, axis = (
        add_constant(graph, name, np.array([number], dtype=np.int64))
        for name, number in (
            (LOGITS_TO_KEEP, _ALL),
            (f"{LOGITS_TO_KEEP}_end", _ALL),
            (f"{LOGITS_TO_KEEP}_axis", _ROWS_AXIS),
        )
    )
    graph.inputs.insert(2, wanted)
    start = onnx_ir.node("Neg", [wanted])
    graph.insert_before(next(iter(graph)), start)
    bounds = [start.outputs[0], end, axis]

    def last(value: Any) -> Any:
        node = onnx_ir.node("Slice", [value, *bounds])
        made = node.outputs[0]
        made.dtype, made.shape = value.dtype, _with_rows(value.shape, full, kept)
        return node

    readers = list(hidden.uses())
    first = last(hidden)
    graph.insert_after(hidden.producer(), first)
    for use in readers:
        use.node.replace_input_with(use.idx, first.outputs[0])
    if hidden.is_graph_output():
        graph.outputs[graph.outputs.index(hidden)] = first.outputs[0]
        first.outputs[0].name, hidden.name = hidden.name, f"{hidden.name}_of_all"
    cut = {first.outputs[0]}
    for node in list(graph):
        if node is first or not cut.intersection(node.inputs):
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and value not in cut and _has_rows(value, full):
                part = last(value)
                graph.insert_before(node, part)
                node.replace_input_with(i, part.outputs[0])
        for made in node.outputs:
            # ONNX Runtime gives values of equal declared shapes the same memory.
            made.shape = _with_rows(made.shape, full, kept)
            cut.add(made)


def _has_rows(value: Any, full: Any) -> bool:
    """Return whether a value has a row for each token of the pass."""
    shape = value.shape
    return shape is not None and len(shape) > _ROWS_AXIS and shape[_ROWS_AXIS] == full


def _with_rows(shape: Any, full: Any, kept: Any) -> Any:
    """Return a shape with the kept rows in place of all rows."""
    if shape is None:
        return None
    return onnx_ir.Shape([kept if dim == full else dim for dim in shape])
