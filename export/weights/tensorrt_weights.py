"""Weights in few bits in a graph for TensorRT: DequantizeLinear before the products that read them.

Strongly typed networks multiply in the graph's own precision; only the weights are stored in few bits.
Zero points are written out, all zero, because the parser of TensorRT 10 takes the type from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from ...errors import GateError
from ...models.weights.weights import ChangedWeights, Weights
from .products import LazyWeights, Product, find_products, replace_product
from .stored_matrix import Ledger, Nodes
from .tensorrt_numbers import (
    BITS,
    DTYPES,
    MatrixForm,
    WeightRequest,
    choose_form,
    matrix_of,
    numbers,
)

if TYPE_CHECKING:
    import torch

OPSET = 21
"""First with int4 and with blocks. From 18 on, no operator that the exporter writes has changed but in
the types it takes."""
IR_VERSION = 10
OWN_ERROR = 2e-3
"""Largest error of a checkpoint's own numbers, as a share of a matrix's largest weight: scales and
offsets that their author computes from two factors are rounded to half precision."""

_PREFIX = "module."


@dataclass(frozen=True)
class _Matrix:
    """A matrix of the graph.

    Attributes:
        name: of the parameter.
        form: how it is stored.
        flipped: whether its parameter is [K, N].
        by_rows: whether the graph holds it as [N, K], like an embedding and a head that is tied to it.
    """

    name: str
    form: MatrixForm
    flipped: bool
    by_rows: bool

    def part(self, of: str) -> str:
        """Return the name of an initializer."""
        return f"{_PREFIX}{self.name}_{of}"


class TensorRtWeights:
    """Replaces the matrices of a graph by quantised ones.

    Args:
        weights: of the checkpoint.
        module: has the checkpoint's parameters; says which are tied.
        request: what is asked for.
        ledger: what is written is counted there.
    """

    def __init__(
        self, weights: Weights, module: Any, request: WeightRequest, ledger: Ledger
    ) -> None:
        self._weights = weights
        self._request = request
        self._ledger = ledger
        self._read: dict[str, _Matrix] = {}
        self._modules = dict(module.named_modules())
        self._head = self._names_of(module.get_output_embeddings())
        self._embedding = self._names_of(module.get_input_embeddings())

    def replace(self, model: Any) -> None:
        """Replace products and lookups of `model`, an onnx_ir model, in place."""
        graph = model.graph
        self._dtype = next(
            value.dtype for value in graph.inputs if value.name.startswith("past.")
        ).numpy()
        lazy = LazyWeights(graph)
        made: dict[Any, Any] = {}
        lookups = [
            node
            for node in graph
            if node.op_type == "Gather" and str(node.inputs[0].name).startswith(_PREFIX)
        ]
        looked_up = {node.inputs[0] for node in lookups} if self._request.free else set()
        products = find_products(graph)
        for node in lookups if self._request.free else ():
            self._replace_lookup(model, node, lazy, made)
        for product in products:
            matrix = self._matrix(product, by_rows=product.weight in looked_up)
            if matrix is not None:
                self._replace_product(model, product, matrix, lazy, made)
        if self._read:
            graph.opset_imports[""] = max(graph.opset_imports[""], OPSET)
            model.ir_version = max(model.ir_version, IR_VERSION)

    def _names_of(self, part: Any) -> tuple[str, ...]:
        return tuple(f"{name}.weight" for name, each in self._modules.items() if each is part)

    def _matrix(self, product: Product, *, by_rows: bool) -> _Matrix | None:
        name = str(product.weight.name).removeprefix(_PREFIX)
        if name not in self._weights:
            return None
        inputs, outputs = product.size
        flipped = self._weights.shapes[name] != (outputs, inputs)
        if inputs == outputs:
            flipped = type(self._modules[name.rpartition(".")[0]]).__name__ == "Conv1D"
        # Two values of int4 share a byte, and the parser of TensorRT 10 wants no row to share one.
        return self._chosen(name, flipped=flipped, by_rows=by_rows or outputs % 2 == 1)

    def _chosen(self, name: str, *, flipped: bool, by_rows: bool) -> _Matrix | None:
        form = choose_form(self._weights, name, flipped, self._request)
        return None if form is None else _Matrix(name, form, flipped, by_rows)

    def _replace_product(
        self, model: Any, product: Product, matrix: _Matrix, lazy: LazyWeights, made: dict[Any, Any]
    ) -> None:
        nodes, form = Nodes(model.graph), matrix.form
        is_head = matrix.name in (*self._head, *self._embedding)
        self._remember(matrix, self._head if is_head else (matrix.name,))
        weight, parts = self._dequantised(nodes, matrix, lazy, made, product.size)
        if matrix.by_rows:
            weight = nodes.add("Transpose", [weight], perm=[1, 0])
        activations = product.node.inputs[0]
        if form.order is not None:
            order = nodes.constant(form.order, f"order_of_{matrix.name}")
            activations = nodes.add("Gather", [activations, order], axis=-1)
        result = nodes.add("MatMul", [activations, weight])
        if form.has_offset:
            blocks = nodes.reshape(activations, [0, 0, form.blocks(product.size[0]), -1])
            sums = nodes.add("ReduceSum", [blocks, nodes.integers(-1)], keepdims=0)
            offsets = parts["offset"]
            if matrix.by_rows:
                offsets = nodes.add("Transpose", [offsets], perm=[1, 0])
            result = nodes.add("Add", [result, nodes.add("MatMul", [sums, offsets])])
        replace_product(model, product, nodes.nodes, result)

    def _replace_lookup(
        self, model: Any, node: Any, lazy: LazyWeights, made: dict[Any, Any]
    ) -> None:
        name = str(node.inputs[0].name).removeprefix(_PREFIX)
        if name not in (*self._head, *self._embedding):
            return  # positions, as GPT-2 learns them: small
        matrix = self._chosen(name, flipped=False, by_rows=True)
        if matrix is None or matrix.form.order is not None:
            return
        self._remember(matrix, self._embedding)
        outputs, inputs = (int(size) for size in node.inputs[0].shape)
        nodes, form = Nodes(model.graph), matrix.form
        table, parts = self._dequantised(nodes, matrix, lazy, made, (inputs, outputs))
        rows = nodes.add("Gather", [table, node.inputs[1]], axis=0)
        if form.has_offset:
            offsets = nodes.add("Gather", [parts["offset"], node.inputs[1]], axis=0)
            blocks = nodes.reshape(rows, [0, 0, form.blocks(inputs), -1])
            each = nodes.add("Unsqueeze", [offsets, nodes.integers(-1)])
            rows = nodes.reshape(nodes.add("Add", [blocks, each]), [0, 0, inputs])
        onnx_ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], nodes.nodes, node.outputs, [rows]
        )

    def _remember(self, matrix: _Matrix, names: tuple[str, ...]) -> None:
        for name in names:
            self._read[name] = matrix

    def _dequantised(
        self,
        nodes: Nodes,
        matrix: _Matrix,
        lazy: LazyWeights,
        made: dict[Any, Any],
        size: tuple[int, int],
    ) -> tuple[Any, dict[str, Any]]:
        """Return the dequantised matrix, as it is stored, and the parts that are stored."""
        form, (inputs, outputs) = matrix.form, size
        each = (outputs, form.blocks(inputs))
        few = onnx_ir.DataType.from_numpy(np.dtype(DTYPES[form.stored]))
        own = onnx_ir.DataType.from_numpy(self._dtype)
        scales = self._laid_out(matrix, each) if form.block else (outputs,)
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            form.stored: (few, self._laid_out(matrix, (outputs, inputs))),
            "scale": (own, scales),
            "zero": (few, scales),
        }
        if form.has_offset:
            shapes["offset"] = (own, self._laid_out(matrix, each))
        key = (matrix.name, matrix.by_rows)
        first = f"{_PREFIX}{matrix.name}"
        parts = lazy.add(key, first, shapes, partial(self._parts, matrix, outputs, inputs))
        if key not in made:
            axis = int(matrix.by_rows) if form.block else int(not matrix.by_rows)
            how: dict[str, Any] = {"axis": axis} | (
                {"block_size": form.block} if form.block else {}
            )
            read = [parts[form.stored], parts["scale"], parts["zero"]]
            made[key] = nodes.add("DequantizeLinear", read, **how)
        return made[key], parts

    def _laid_out(self, matrix: _Matrix, shape: tuple[int, int]) -> tuple[int, int]:
        return shape if matrix.by_rows else (shape[1], shape[0])

    def _parts(self, matrix: _Matrix, outputs: int, inputs: int) -> dict[str, NDArray[Any]]:
        """Compute a matrix's numbers, and compare them with what the checkpoint holds."""
        form = matrix.form
        blocks = form.blocks(inputs)
        values = np.empty((outputs, inputs), DTYPES[form.stored])
        scales = np.empty((outputs, blocks), self._dtype)
        offsets = np.empty((outputs, blocks), self._dtype) if form.has_offset else None
        error, largest, start = 0.0, 0.0, 0
        for part in self._numbers(matrix):
            rows = slice(start, start + len(part.values))
            values[rows], scales[rows] = part.values, part.scales
            if offsets is not None:
                offsets[rows] = part.offsets
            found = matrix_of(part.values, part.scales, part.offsets, form)
            error = max(error, float(np.abs(found - part.reference).max(initial=0)))
            largest = max(largest, float(np.abs(part.reference).max(initial=0)))
            start = rows.stop
        share = error / largest if largest else 0.0
        if not np.isfinite(largest) or (form.own and share > OWN_ERROR):
            raise GateError(
                f"the {form.kind} numbers of {matrix.name} cannot be taken over: they differ from the "
                f"checkpoint's by {share:.2g} of its largest weight",
                hint="export with --weights fp16; report it with the checkpoint's name",
            )
        width = BITS[form.stored] + 8 * scales.itemsize * (1 + form.has_offset) * blocks / inputs
        self._ledger.count(matrix.name, form.kind, values.size, round(width * values.size), share)

        def laid_out(array: NDArray[Any]) -> NDArray[Any]:
            return array if matrix.by_rows else np.ascontiguousarray(array.T)

        scale = laid_out(scales) if form.block else scales[:, 0]
        parts = {
            form.stored: laid_out(values),
            "scale": scale,
            "zero": np.zeros(scale.shape, values.dtype),
        }
        return parts if offsets is None else {**parts, "offset": laid_out(offsets)}

    def _numbers(self, matrix: _Matrix) -> Any:
        arguments = (matrix.flipped, matrix.form, self._dtype, self._request.free)
        return numbers(self._weights, matrix.name, *arguments)

    def written(self, graph: Path, dtype: torch.dtype) -> Weights:
        """Return the weights as the graph on the disk states them."""
        return _WrittenWeights(self._weights, graph, self._read, dtype)


class _WrittenWeights(ChangedWeights):
    """A checkpoint's weights, of which some are read from a graph's quantised ones."""

    def __init__(
        self, weights: Weights, graph: Path, matrices: dict[str, _Matrix], dtype: torch.dtype
    ) -> None:
        super().__init__(weights)
        self._dtype = dtype
        self._matrices = matrices
        self._stored = onnx_ir.load(graph).graph.initializers

    def __getitem__(self, name: str) -> torch.Tensor:
        matrix = self._matrices.get(name)
        if matrix is None:
            return super().__getitem__(name)
        import torch

        return torch.from_numpy(self._read(matrix)).to(self._dtype)

    def kind(self, name: str) -> str:
        """Return the form of a matrix, or the checkpoint's own kind."""
        matrix = self._matrices.get(name)
        return super().kind(name) if matrix is None else matrix.form.kind

    def _read(self, matrix: _Matrix) -> NDArray[np.float32]:
        form = matrix.form
        values, scales = self._part(matrix, form.stored), self._part(matrix, "scale")
        offsets = self._part(matrix, "offset") if form.has_offset else None
        if not matrix.by_rows:
            values, scales = values.T, scales.T
            offsets = None if offsets is None else offsets.T
        scales = scales if form.block else scales.reshape(-1, 1)
        found = matrix_of(np.ascontiguousarray(values), scales, offsets, form)
        return np.ascontiguousarray(found.T if matrix.flipped else found)

    def _part(self, matrix: _Matrix, of: str) -> NDArray[Any]:
        array: NDArray[Any] = self._stored[matrix.part(of)].const_value.numpy()
        return array
