"""The places of a graph that read a weight matrix, and what is put there instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

CONTRIB = "com.microsoft"
_HALVED_FROM = 1024
"""Elements; smaller tensors stay fp32 in fp16 graphs."""

Parts = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Product:
    """A matrix product by a constant.

    Attributes:
        node: MatMul, or a Gemm without factors.
        weight: the initializer.
        is_transposed: whether the weight is stored as [N, K].
    """

    node: Any
    weight: Any
    is_transposed: bool

    @property
    def size(self) -> tuple[int, int]:
        """Inputs K and outputs N."""
        first, second = (int(size) for size in self.weight.shape)
        return (second, first) if self.is_transposed else (first, second)


def find_products(graph: Any) -> list[Product]:
    """Return the products by a constant matrix, in the graph's order."""
    found = []
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm") or node.domain != "":
            continue
        weight, is_transposed = node.inputs[1], False
        if node.op_type == "Gemm":
            if not _is_plain_gemm(node):
                continue
            is_transposed = bool(_attribute(node, "transB", 0))
        source = weight.producer()
        if source is not None and source.op_type == "Transpose":
            weight, is_transposed = source.inputs[0], not is_transposed
        if weight.is_initializer() and len(weight.shape) == 2:
            found.append(Product(node, weight, is_transposed))
    return found


def group_products(
    products: Sequence[Product], form_of: Callable[[Product], Hashable] = lambda product: None
) -> list[list[Product]]:
    """Return the products in groups that can become one, in the order of each group's first.

    They read the same activations and weights of the same form: queries, keys and values; gate and up.
    A weight that several products read stays by itself: joined to others it would be stored twice.
    """
    readers = Counter(product.weight for product in products)
    groups: dict[Any, list[Product]] = {}
    for product in products:
        alone = readers[product.weight] > 1
        key = product.node if alone else (product.node.inputs[0], form_of(product))
        groups.setdefault(key, []).append(product)
    return list(groups.values())


def replace_product(model: Any, product: Product, nodes: Sequence[Any], result: Any) -> None:
    """Put new nodes in the place of a product's node.

    Args:
        model: that holds it.
        product: what is replaced.
        nodes: new ones, in order.
        result: the product as the new nodes, or those before them, compute it.
    """
    old = product.node
    nodes = list(nodes)
    if old.op_type == "Gemm" and len(old.inputs) > 2 and old.inputs[2] is not None:
        nodes.append(onnx_ir.node("Add", [result, old.inputs[2]]))
        result = nodes[-1].outputs[0]
    onnx_ir.convenience.replace_nodes_and_values(
        model.graph, old, [old], nodes, old.outputs, [result]
    )
    model.graph.opset_imports.setdefault(CONTRIB, 1)


def replace_group(model: Any, group: list[Product], nodes: Sequence[Any], result: Any) -> None:
    """Put one product, cut up after it, in the place of several that read the same activations."""
    if len(group) == 1:
        replace_product(model, group[0], nodes, result)
        return
    graph, sizes = model.graph, [product.size[1] for product in group]
    name = f"outputs_{'_'.join(map(str, sizes))}"
    cuts = graph.initializers.get(name)
    if cuts is None:
        cuts = add_constant(graph, name, np.array(sizes, dtype=np.int64))
    split = onnx_ir.node("Split", [result, cuts], attributes={"axis": -1}, num_outputs=len(sizes))
    graph.insert_before(group[0].node, [*nodes, split])
    for product, output in zip(group, split.outputs, strict=True):
        replace_product(model, product, [], output)


def halve(model: Any) -> None:
    """Store large fp32 tensors as fp16 and widen them in the graph.

    ONNX Runtime widens constants when it loads a graph, so a pass computes in fp32 as before.
    """
    graph = model.graph
    first = graph[0]
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _HALVED_FROM:
            continue
        half = lazy_value(
            graph,
            f"{value.name}_fp16",
            onnx_ir.DataType.FLOAT16,
            tuple(tensor.shape.numpy()),
            partial(_half, tensor),
        )
        wide = onnx_ir.node("Cast", [half], attributes={"to": onnx_ir.DataType.FLOAT.value})
        value.replace_all_uses_with(wide.outputs[0])
        graph.insert_before(first, wide)
        del graph.initializers[value.name]


def _half(tensor: Any) -> NDArray[np.float16]:
    """Read a tensor in half precision."""
    array: NDArray[np.float16] = tensor.numpy().astype(np.float16)
    return array


class LazyWeights:
    """New weights of a graph that are computed when they are written, the parts of each together."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._values: dict[Hashable, dict[str, Any]] = {}
        self._latest: tuple[Hashable, Parts] | None = None

    def add(
        self,
        key: Hashable,
        name: str,
        shapes: dict[str, tuple[Any, tuple[int, ...]]],
        compute: Callable[[], Parts],
    ) -> dict[str, Any]:
        """Return the values of a weight's parts; they are made once for each key.

        Args:
            key: of the weight.
            name: that the parts' names begin with.
            shapes: type and shape of each part.
            compute: returns the parts.
        """
        if key not in self._values:

            def part(of: str) -> NDArray[Any]:
                # They are written one after the other, so the last weight computed is kept.
                if self._latest is None or self._latest[0] != key:
                    self._latest = None
                    self._latest = (key, compute())
                return self._latest[1][of]

            self._values[key] = {
                of: lazy_value(self._graph, f"{name}_{of}", dtype, shape, partial(part, of))
                for of, (dtype, shape) in shapes.items()
            }
        return self._values[key]


def add_constant(graph: Any, name: str, array: NDArray[Any]) -> Any:
    """Add an initializer to an onnx_ir graph, under a name that it does not have yet."""
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def lazy_value(
    graph: Any,
    name: str,
    dtype: Any,
    shape: tuple[int, ...],
    compute: Callable[[], NDArray[Any]],
) -> Any:
    """Add an initializer that is computed when it is written."""
    value = onnx_ir.val(name, const_value=lazy_tensor(name, dtype, shape, compute))
    graph.register_initializer(value)
    return value


def lazy_tensor(
    name: str, dtype: Any, shape: tuple[int, ...], compute: Callable[[], NDArray[Any]]
) -> Any:
    """Return a tensor that is computed when it is read."""
    return onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(compute(), name=name, dtype=dtype),
        dtype=dtype,
        shape=onnx_ir.Shape(shape),
        name=name,
    )


def _is_plain_gemm(node: Any) -> bool:
    """Say whether a Gemm is a product and a sum, without factors."""
    factors = [_attribute(node, name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not _attribute(node, "transA", 0)


def _attribute(node: Any, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
