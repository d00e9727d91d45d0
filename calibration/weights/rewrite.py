"""The nodes of each weight format, and the tensors that they read, computed when they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export.constants import add_constant
from ...export.weights.products import (
    CONTRIB,
    LazyWeights,
    Parts,
    Product,
    group_products,
    replace_group,
    replace_product,
)
from ...runtime.bundle.manifest import WeightFormat
from .formats import BLOCKWISE, Blockwise
from .quantise import quantise_blocks, quantise_channels

_MIDDLE = 128
"""The uint8 that stands for zero where activations are quantised by row."""


def to_blocks(model: Any, products: list[Product], weight_format: WeightFormat) -> None:
    """Replace products by MatMulNBits, which reads weights in blocks.

    Products of the same activations become one, cut up behind it: queries, keys and values; gate and
    up. Each operator rounds its activations and wakes the threads anew. The numbers of an output are
    the same wherever it stands.
    """
    import onnx_ir

    form = BLOCKWISE[weight_format]
    weights = LazyWeights(model.graph)
    for group in group_products(products):
        inputs, sizes = group[0].size[0], [each.size[1] for each in group]
        outputs, blocks, per_byte = sum(sizes), -(-inputs // form.block), 8 // form.bits
        shapes = {
            "packed": (onnx_ir.DataType.UINT8, (outputs, blocks, form.block // per_byte)),
            "scales": (onnx_ir.DataType.FLOAT, (outputs, blocks)),
        }
        if not form.is_symmetric:
            shapes["zero_points"] = (onnx_ir.DataType.UINT8, (outputs, -(-blocks // per_byte)))
        suffix = weight_format if len(group) == 1 else f"and_others_{weight_format}"
        name = f"{group[0].weight.name}_{suffix}"
        compute = partial(_blocks_of, group, form, shapes)
        tensors = weights.add(_key(group), name, shapes, compute)
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": form.bits,
            "block_size": form.block,
            "accuracy_level": form.accuracy_level,
        }
        node = onnx_ir.node(
            "MatMulNBits",
            [group[0].node.inputs[0], *tensors.values()],
            attributes=attributes,
            domain=CONTRIB,
        )
        replace_group(model, group, [node], node.outputs[0])


def _key(products: Sequence[Product]) -> tuple[tuple[str, bool], ...]:
    """Return what is the same for products of the same weights."""
    return tuple((str(each.weight.name), each.is_transposed) for each in products)


def _blocks_of(group: list[Product], form: Blockwise, shapes: dict[str, Any]) -> Parts:
    """Return the parts of the weights of a group, one weight's outputs behind the other's."""
    parts = [quantise_blocks(each.matrix(), form) for each in group]
    return {
        name: np.concatenate([each[name].reshape(-1, *shape[1:]) for each in parts])
        for name, (_, shape) in shapes.items()
    }


def to_channels(
    model: Any, products: list[Product], weight_format: WeightFormat, *, reduce_range: bool
) -> None:
    """Replace products by products of int8 numbers, whose activations are quantised in each pass."""
    import onnx_ir

    by_row = weight_format == "int8-rows"
    multiply = _multiply_by_row(model.graph) if by_row else _multiply
    weights = LazyWeights(model.graph)
    quantised: dict[Any, list[Any]] = {}
    for product in products:
        inputs, outputs = product.size

        def parts(product: Product = product) -> Parts:
            packed, scales = quantise_channels(product.matrix(), reduce_range=reduce_range)
            return {"packed": packed, "scales": scales}

        shapes = {
            "packed": (onnx_ir.DataType.INT8, (inputs, outputs)),
            "scales": (onnx_ir.DataType.FLOAT, (outputs,)),
        }
        tensors = weights.add(_key([product]), f"{product.weight.name}_int8", shapes, parts)
        nodes = multiply(product.node.inputs[0], tensors, quantised)
        replace_product(model, product, nodes, nodes[-1].outputs[0])


def _multiply(source: Any, weight: dict[str, Any], quantised: dict[Any, list[Any]]) -> list[Any]:
    """Return the nodes that `quantize_dynamic` makes of a product, in order.

    ONNX Runtime fuses them when it loads the graph.

    Args:
        source: the activations.
        weight: `packed` [K, N] and `scales` [N].
        quantised: what is known already of activations: several products read the same.
    """
    import onnx_ir

    new = []
    if source not in quantised:
        dynamic = onnx_ir.node("DynamicQuantizeLinear", [source], num_outputs=3)
        quantised[source] = list(dynamic.outputs)
        new.append(dynamic)
    values, scale, zero_point = quantised[source]
    product = onnx_ir.node("MatMulInteger", [values, weight["packed"], zero_point])
    cast = onnx_ir.node("Cast", product.outputs, attributes={"to": onnx_ir.DataType.FLOAT.value})
    scales = onnx_ir.node("Mul", [scale, weight["scales"]])
    scaled = onnx_ir.node("Mul", [cast.outputs[0], scales.outputs[0]])
    return [*new, product, cast, scales, scaled]


def _multiply_by_row(graph: Any) -> Callable[..., list[Any]]:
    """Return what `_multiply` is, with a scale for each row.

    A row's largest magnitude becomes 127, so a row does not depend on the others of its pass. The
    integer product is exact in any order, which leaves no difference between a row on its own and the
    same row in a wider pass. ONNX Runtime's tools do not make this form.
    """
    import onnx_ir

    def constant(name: str, array: NDArray[Any]) -> Any:
        return add_constant(graph, f"int8_rows_{name}", array)

    last_axis = constant("last_axis", np.array([-1], dtype=np.int64))
    flat = constant("flat", np.array([-1], dtype=np.int64))
    step = constant("step", np.array(1 / (_MIDDLE - 1), dtype=np.float32))
    one = constant("one", np.array(1, dtype=np.float32))
    middle = constant("middle", np.array(_MIDDLE, dtype=np.uint8))
    fill = onnx_ir.tensor(np.array([_MIDDLE], dtype=np.uint8))
    zeros: dict[Any, Any] = {}

    def multiply(source: Any, weight: dict[str, Any], quantised: dict[Any, list[Any]]) -> list[Any]:
        new = []
        if source not in quantised:
            magnitude = onnx_ir.node("Abs", [source])
            largest = onnx_ir.node("ReduceMax", [magnitude.outputs[0], last_axis])
            scale = onnx_ir.node("Mul", [largest.outputs[0], step])
            scales = onnx_ir.node("Reshape", [scale.outputs[0], flat])
            new += [magnitude, largest, scale, scales]
            # As many zero points as rows, once for each number of them: the head may read fewer.
            count = _rows_of(source)
            if count not in zeros:
                rows = onnx_ir.node("Shape", scales.outputs)
                made = onnx_ir.node("ConstantOfShape", rows.outputs, attributes={"value": fill})
                new += [rows, made]
                zeros[count] = made.outputs[0]
            # The axis of rows is the one before the last, with or without a batch before it.
            rounded = onnx_ir.node(
                "QuantizeLinear",
                [source, scales.outputs[0], zeros[count]],
                attributes={"axis": -2},
            )
            new.append(rounded)
            quantised[source] = [rounded.outputs[0], scale.outputs[0]]
        values, scale_of_row = quantised[source]
        product = onnx_ir.node(
            "MatMulIntegerToFloat",
            [values, weight["packed"], one, weight["scales"], middle],
            domain=CONTRIB,
        )
        scaled = onnx_ir.node("Mul", [product.outputs[0], scale_of_row])
        return [*new, product, scaled]

    return multiply


def _rows_of(source: Any) -> Any:
    """Return what is the same for activations that are known to have as many rows."""
    rows = None if source.shape is None else source.shape[-2]
    name = getattr(rows, "value", rows)  # of a symbolic size; a number is itself
    return source if name is None else name
