"""The nodes of each weight format, and the tensors that they read, computed when they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export.constants import add_constant
from ...export.weights.products import Product, lazy_value
from ...runtime.bundle.manifest import WeightFormat
from .formats import BLOCKWISE, Blockwise
from .quantise import quantise_blocks, quantise_channels

_CONTRIB = "com.microsoft"
_MIDDLE = 128
"""The uint8 that stands for zero where activations are quantised by row."""

_Parts = dict[str, NDArray[Any]]


class _Weights:
    """The new tensors of a graph: each weight once, however many products read it.

    The parts of a weight are written one after the other, so the latest computed is kept.
    """

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._values: dict[Any, dict[str, Any]] = {}
        self._latest: tuple[Any, _Parts] | None = None

    def of(
        self,
        products: Sequence[Product],
        suffix: str,
        shapes: dict[str, tuple[Any, tuple[int, ...]]],
        compute: Callable[[], _Parts],
    ) -> dict[str, Any]:
        """Return the values that stand for the weights of products, by part.

        Args:
            products: whose weights: one, or several that become one.
            suffix: told behind the first weight's name.
            shapes: type and shape of each part.
            compute: the parts.
        """
        key = tuple((each.weight.name, each.is_transposed) for each in products)
        if key not in self._values:

            def part(name: str) -> NDArray[Any]:
                if self._latest is None or self._latest[0] != key:
                    self._latest = (key, compute())
                return self._latest[1][name]

            self._values[key] = {
                name: lazy_value(
                    self._graph,
                    f"{products[0].weight.name}_{suffix}_{name}",
                    dtype,
                    shape,
                    partial(part, name),
                )
                for name, (dtype, shape) in shapes.items()
            }
        return self._values[key]


def to_blocks(model: Any, products: list[Product], weight_format: WeightFormat) -> None:
    """Replace products by MatMulNBits, which reads weights in blocks.

    Products of the same activations become one, cut up behind it: queries, keys and values; gate and
    up. Each operator rounds its activations and wakes the threads anew. The numbers of an output are
    the same wherever it stands.
    """
    import onnx_ir

    form = BLOCKWISE[weight_format]
    weights = _Weights(model.graph)
    for group in _by_activations(products):
        inputs, sizes = group[0].size[0], [each.size[1] for each in group]
        outputs, blocks, per_byte = sum(sizes), -(-inputs // form.block), 8 // form.bits
        shapes = {
            "packed": (onnx_ir.DataType.UINT8, (outputs, blocks, form.block // per_byte)),
            "scales": (onnx_ir.DataType.FLOAT, (outputs, blocks)),
        }
        if not form.is_symmetric:
            shapes["zero_points"] = (onnx_ir.DataType.UINT8, (outputs, -(-blocks // per_byte)))
        suffix = weight_format if len(group) == 1 else f"and_others_{weight_format}"
        tensors = weights.of(group, suffix, shapes, partial(_blocks_of, group, form, shapes))
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
            domain=_CONTRIB,
        )
        if len(group) == 1:
            _replace(model, group[0], [node])
        else:
            _cut_up(model, group, node, sizes)


def _by_activations(products: list[Product]) -> list[list[Product]]:
    """Return the products in groups that read the same, in the order of each group's first.

    A weight that several products read stays by itself: joined to others it would be stored twice.
    """
    readers = Counter(product.weight for product in products)
    groups: dict[Any, list[Product]] = {}
    for product in products:
        alone = readers[product.weight] > 1
        groups.setdefault(product.node if alone else product.node.inputs[0], []).append(product)
    return list(groups.values())


def _blocks_of(group: list[Product], form: Blockwise, shapes: dict[str, Any]) -> _Parts:
    """Return the parts of the weights of a group, one weight's outputs behind the other's."""
    parts = [quantise_blocks(each.matrix(), form) for each in group]
    return {
        name: np.concatenate([each[name].reshape(-1, *shape[1:]) for each in parts])
        for name, (_, shape) in shapes.items()
    }


def _cut_up(model: Any, group: list[Product], node: Any, sizes: list[int]) -> None:
    """Put one product, and a Split behind it, in the place of several."""
    import onnx_ir

    graph, name = model.graph, f"outputs_{'_'.join(map(str, sizes))}"
    cuts = graph.initializers.get(name)
    if cuts is None:
        cuts = add_constant(graph, name, np.array(sizes, dtype=np.int64))
    split = onnx_ir.node(
        "Split", [node.outputs[0], cuts], attributes={"axis": -1}, num_outputs=len(sizes)
    )
    graph.insert_before(group[0].node, [node, split])
    for product, output in zip(group, split.outputs, strict=True):
        _replace(model, product, [], output)


def to_channels(
    model: Any, products: list[Product], weight_format: WeightFormat, *, reduce_range: bool
) -> None:
    """Replace products by products of int8 numbers, whose activations are quantised in each pass."""
    import onnx_ir

    by_row = weight_format == "int8-rows"
    multiply = _multiply_by_row(model.graph) if by_row else _multiply
    weights = _Weights(model.graph)
    quantised: dict[Any, list[Any]] = {}
    for product in products:
        inputs, outputs = product.size

        def parts(product: Product = product) -> _Parts:
            packed, scales = quantise_channels(product.matrix(), reduce_range=reduce_range)
            return {"packed": packed, "scales": scales}

        shapes = {
            "packed": (onnx_ir.DataType.INT8, (inputs, outputs)),
            "scales": (onnx_ir.DataType.FLOAT, (outputs,)),
        }
        tensors = weights.of([product], "int8", shapes, parts)
        _replace(model, product, multiply(product.node.inputs[0], tensors, quantised))


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
            domain=_CONTRIB,
        )
        scaled = onnx_ir.node("Mul", [product.outputs[0], scale_of_row])
        return [*new, product, scaled]

    return multiply


def _rows_of(source: Any) -> Any:
    """Return what is the same for activations that are known to have as many rows."""
    rows = None if source.shape is None else source.shape[-2]
    name = getattr(rows, "value", rows)  # of a symbolic size; a number is itself
    return source if name is None else name


def _replace(model: Any, product: Product, nodes: list[Any], result: Any = None) -> None:
    """Put others in the place of a product's node.

    Args:
        model: that holds it.
        product: what is replaced.
        nodes: new ones, in order.
        result: the product as the new nodes, or those before them, yield it; None for the last one's
            first output.
    """
    import onnx_ir

    old = product.node
    result = nodes[-1].outputs[0] if result is None else result
    if old.op_type == "Gemm" and len(old.inputs) > 2 and old.inputs[2] is not None:
        nodes = [*nodes, onnx_ir.node("Add", [result, old.inputs[2]])]
        result = nodes[-1].outputs[0]
    onnx_ir.convenience.replace_nodes_and_values(
        model.graph, old, [old], nodes, old.outputs, [result]
    )
    model.graph.opset_imports.setdefault(_CONTRIB, 1)
