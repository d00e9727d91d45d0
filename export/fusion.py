"""Replace patterns that ONNX Runtime's optimiser does not recognise by its own fused operators.

On a small model, or one with 4-bit weights, a decode step spends a third of its time outside the
matrix products: torch exports a root-mean-square norm as six small operators and a rotary embedding as
eight, and every layer has two of each. A pattern is checked operator by operator, and what does not
match is left unchanged. The parity gate checks the result, as for every graph. Only `com.microsoft`
operators are used, since ONNX's checker refuses ONNX Runtime's operators in ONNX's own domain.

Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from .weights.products import add_constant

_DOMAIN = "com.microsoft"

_TO_HEADS = [0, 2, 1, 3]
"""Permutation between [1, S, H, D] and [1, H, S, D]."""


def fuse(model: Any) -> None:
    """Fuse norms after residual sums, and the operators around GroupQueryAttention, in place."""
    for node in list(model.graph):
        if node.op_type == "GroupQueryAttention":
            _fuse_attention(node)
        elif node.op_type == "Pow":
            _fuse_norm(node)
    model.graph.sort()  # a computed weight may come after the sum before its norm


def _fuse_norm(power: Any) -> None:
    """Fuse x = a + b; weight * (x / sqrt(mean(x ** 2) + epsilon)): SkipSimplifiedLayerNormalization.

    The sum itself, which the next residual reads, is the operator's fourth output.
    """
    x = power.inputs[0]
    addition = _made_by(x, "Add")
    mean = _only_user(power, "ReduceMean")
    shifted = _only_user(mean, "Add")
    inverse = _only_user(_only_user(shifted, "Sqrt"), "Reciprocal")
    scaled = _only_user(inverse, "Mul")
    weighted = _only_user(scaled, "Mul")
    if addition is None or weighted is None or x not in scaled.inputs:
        return
    if x.is_graph_output() or weighted.outputs[0].is_graph_output():
        return
    epsilon = _number(_other(shifted, mean.outputs[0]))
    weight = _other(weighted, scaled.outputs[0])
    is_norm = (
        _number(power.inputs[1]) == 2
        and _numbers(mean.inputs[1]) == [-1]
        and mean.attributes["keepdims"].as_int() == 1
        and epsilon is not None
        and weight.shape is not None
        and len(weight.shape) == 1
        and all(_is_rows(value) and value.shape == x.shape for value in addition.inputs)
    )
    if not is_norm:
        return
    norm = _insert(
        addition,
        "SkipSimplifiedLayerNormalization",
        [*addition.inputs, weight],
        {"epsilon": epsilon},
        outputs=4,
    )
    _replace(weighted.outputs[0], norm.outputs[0])
    _replace(x, norm.outputs[3])


def _fuse_attention(attention: Any) -> None:
    """Remove the transposes before and after the operator, and fuse the rotation."""
    for i in range(3):
        flat = _made_by(attention.inputs[i], "Reshape")
        turned = _made_by(flat and flat.inputs[0], "Transpose")
        if turned is None or _order(turned) != _TO_HEADS:
            continue
        heads = turned.inputs[0]
        straight = _rotated(heads, flat) or _flat_rows(heads, flat)
        if straight is not None:
            attention.replace_input_with(i, straight)
    split = _only_user(attention, "Reshape")
    joined = _only_user(split, "Reshape")
    if joined is not None and _width(joined.outputs[0]) == _width(attention.outputs[0]):
        _replace(joined.outputs[0], attention.outputs[0])


def _flat_rows(heads: Any, flat: Any) -> Any | None:
    """Return [1, S, H * D] if heads [1, H, S, D] are a transpose of it, or None.

    Args:
        heads: the value before the operator's own transpose.
        flat: the Reshape that flattens it again; its shape is used if the rows were split into heads.
    """
    turned = _made_by(heads, "Transpose")
    if turned is None or _order(turned) != _TO_HEADS:
        return None
    rows = turned.inputs[0]
    split = _made_by(rows, "Reshape")
    if split is not None and _width(split.inputs[0]) == _width(flat.outputs[0]) is not None:
        return split.inputs[0]
    joined = onnx_ir.node("Reshape", [rows, flat.inputs[1]], attributes={"allowzero": 1})
    return _placed(flat, joined, flat.outputs[0])


def _rotated(heads: Any, flat: Any) -> Any | None:
    """Fuse x * cos + rotate_half(x) * sin: RotaryEmbedding. Return None for anything else."""
    addition = _made_by(heads, "Add")
    if addition is None:
        return None
    products = [_made_by(value, "Mul") for value in addition.inputs]
    if None in products:
        return None
    straight, crossed = products
    turned = _made_by(crossed.inputs[0], "Concat")
    x, dim = straight.inputs[0], _width(straight.inputs[0])
    cos, sin = (
        _table(product.inputs[1], op) for product, op in ((straight, "Cos"), (crossed, "Sin"))
    )
    if turned is None or dim is None or cos is None or sin is None:
        return None
    if not _is_half_turn(turned, x, dim):
        return None
    # The tables hold the rows of this pass, computed in the graph, so they are read from row 0.
    tables = [_half_rows(flat, table, dim // 2) for table in (cos, sin)]
    rows = _flat_rows(x, flat)
    source = x if rows is None else rows
    rotary = _insert(
        flat,
        "RotaryEmbedding",
        [source, _constant(flat, [0]), *tables],
        {"num_heads": int(x.shape[1])},
        outputs=1,
    )
    rotated = rotary.outputs[0]
    if rows is None:  # a norm transposed the heads already
        _replace(heads, rotated)
        return flat.outputs[0]
    rotated.shape, rotated.dtype = flat.outputs[0].shape, flat.outputs[0].dtype
    return rotated


def _is_half_turn(turned: Any, x: Any, dim: int) -> bool:
    """Return whether `turned` is Concat(-x[..., D/2:], x[..., :D/2])."""
    negated = _made_by(turned.inputs[0], "Neg")
    second = _made_by(negated and negated.inputs[0], "Slice")
    first = _made_by(turned.inputs[1], "Slice")
    return (
        len(turned.inputs) == 2
        and turned.attributes["axis"].as_int() in (-1, 3)
        and _covers(first, x, 0, dim // 2)
        and _covers(second, x, dim // 2, dim)
    )


def _covers(cut: Any, x: Any, start: int, end: int) -> bool:
    """Return whether a Slice takes [start, end) of the last axis of `x`."""
    if cut is None or cut.inputs[0] is not x:
        return False
    starts, ends, axes = (_numbers(value) for value in cut.inputs[1:4])
    steps = _numbers(cut.inputs[4]) if len(cut.inputs) > 4 else [1]
    if starts is None or ends is None or axes not in ([3], [-1]) or steps != [1]:
        return False
    return starts == [start] and min(ends[0], x.shape[3]) == end


def _table(spread: Any, op: str) -> Any | None:
    """Return cos or sin [1, S, D] before its Unsqueeze, if both halves of a row are equal."""
    unsqueezed = _made_by(spread, "Unsqueeze")
    if unsqueezed is None or _numbers(unsqueezed.inputs[1]) != [1]:
        return None
    table = value = unsqueezed.inputs[0]
    while (node := value.producer()) is not None and node.op_type in ("Cast", "Mul"):
        if node.op_type == "Mul" and _number(node.inputs[1]) is None:
            return None
        value = node.inputs[0]
    angles = _made_by(_made_by(value, op) and value.producer().inputs[0], "Concat")
    if angles is None or len(angles.inputs) != 2 or angles.inputs[0] is not angles.inputs[1]:
        return None
    return table if angles.attributes["axis"].as_int() in (-1, 2) else None


def _half_rows(before: Any, table: Any, half: int) -> Any:
    """Return the left half of a table [1, S, D] as [S, D/2]."""
    cut = onnx_ir.node("Slice", [table, *(_constant(before, [each]) for each in (0, half, 2))])
    rows = onnx_ir.node("Squeeze", [_placed(before, cut, table), _constant(before, [0])])
    return _placed(before, rows, table)


def _insert(
    before: Any, op: str, inputs: Sequence[Any], attributes: dict[str, Any], outputs: int
) -> Any:
    """Insert one of ONNX Runtime's operators before a node."""
    node = onnx_ir.node(
        op, inputs, attributes=attributes, domain=_DOMAIN, num_outputs=outputs, version=1
    )
    before.graph.insert_before(before, node)
    return node


def _placed(before: Any, node: Any, like: Any) -> Any:
    """Insert `node` before another and return its output, with the type of `like`."""
    before.graph.insert_before(before, node)
    node.outputs[0].dtype = like.dtype
    return node.outputs[0]


def _constant(before: Any, numbers: list[int]) -> Any:
    """Return a small int64 constant of the graph; equal ones are merged later."""
    graph = before.graph
    name = f"fusion_{len(graph.initializers)}"
    return add_constant(graph, name, np.array(numbers, dtype=np.int64))


def _replace(old: Any, new: Any) -> None:
    """Let the readers of `old` read `new`, which holds the same values."""
    new.shape, new.dtype = old.shape, old.dtype
    old.replace_all_uses_with(new)


def _made_by(value: Any, op: str) -> Any:
    """Return the node that makes `value` if it is an `op`, or None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def _only_user(node: Any, op: str) -> Any:
    """Return the one node that reads the first output of `node` if it is an `op`, or None."""
    if node is None or len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    (use,) = node.outputs[0].uses()
    return use.node if use.node.op_type == op else None


def _other(node: Any, value: Any) -> Any:
    """Return the operand of a node with two that is not `value`."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _is_rows(value: Any) -> bool:
    """Return whether a value is known to be [1, S, N]."""
    return value is not None and value.shape is not None and len(value.shape) == 3


def _width(value: Any) -> int | None:
    """Return the size of the last axis, or None if it is unknown."""
    if value is None or value.shape is None or not isinstance(value.shape[-1], int):
        return None
    return int(value.shape[-1])


def _order(turned: Any) -> list[int]:
    return list(turned.attributes["perm"].as_ints())


def _numbers(value: Any) -> list[Any] | None:
    """Return the elements of a small constant."""
    if value is None or value.const_value is None or value.const_value.size > 8:
        return None
    return list(value.const_value.numpy().ravel().tolist())


def _number(value: Any) -> float | None:
    """Return the only element of a constant."""
    numbers = _numbers(value)
    return float(numbers[0]) if numbers is not None and len(numbers) == 1 else None
