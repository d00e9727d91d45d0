"""A decoder graph whose head computes the logits of some tokens only.

Between the head and the ids, everything is computed from the kept tokens: softmax, entropy and
logsumexp are those of the distribution over them. Ids are mapped back, so the graph's outputs have the
full vocabulary: the logits of the other tokens are the lowest number of fp32. It is not minus infinity
on purpose: results computed from them are finite, and a sampler that forbids every kept token can still
choose one, which the target then rejects.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, MissingExtraError, UsageError
from ...export.weights.products import add_constant, find_products, lazy_value

LOWEST = np.finfo(np.float32).min
"""The logit of a token that is not kept."""

_KEPT = "_kept"
"""Suffix of the name of a trimmed constant."""

_INLINE_BYTES = 1024
"""Tensors below this stay inside the graph's file."""

_BY_ELEMENT = ("Add", "Sub", "Mul", "Div", "Tanh")
"""What heads do to logits after the product: biases, scales, softcaps."""


def trim(graph: Path, output: Path, kept: NDArray[np.int64]) -> None:
    """Write the decoder graph at `graph` with a head for the tokens `kept`.

    One weight is in memory at a time. A tied embedding is kept whole beside the new head.

    Args:
        graph: `model.onnx` of a bundle in fp32 or with quantised weights, its external data beside it.
        output: path of the new graph; its data goes beside it. Existing files are replaced.
        kept: int64 [N], ids in ascending order, N no less than the summary's `top_ids`.

    Raises:
        MissingExtraError: onnx_ir is not installed.
        BundleError: the graph cannot be read.
        UsageError: an operator between its head and its logits is not supported.
    """
    model = _read_graph(graph)
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    products = {product.node: product for product in find_products(model.graph)}
    head, following = _head(logits, products, graph)
    vocab_size = int(logits.shape[-1])
    if head in products:
        width = products[head].size[1]
        _trim_product(model.graph, products[head], kept)
    else:
        width = int(head.attributes["N"].value)
        _trim_blocks(model.graph, head, width, kept)
    for node in following:
        _trim_operands(model.graph, node, {width, vocab_size}, kept)
        for value in node.inputs:
            if value is not None and _is_of_minima(value.producer()):
                _trim_rows(model.graph, value.producer(), 1, width, kept)
    _narrow(head, {width, vocab_size}, len(kept))

    ids = add_constant(model.graph, "kept_ids", kept)
    readers = list(logits.uses())
    whole = _expand(model.graph, logits, ids, vocab_size)
    for reader, index in readers:
        if reader.op_type == "TopK":
            _map_ids(model.graph, reader, ids)
        elif reader.op_type == "GatherElements":  # of the token that was fed next
            reader.replace_input_with(index, whole)
    logits.name, whole.name = "kept_logits", "logits"
    model.graph.outputs[model.graph.outputs.index(logits)] = whole
    output.parent.mkdir(parents=True, exist_ok=True)
    _save_graph(model, graph, output)


def _read_graph(graph: Path) -> Any:
    """Open a graph, its weights mapped from their file; errors as in `trim`."""
    try:
        import onnx_ir
    except ImportError as error:
        raise MissingExtraError("onnx-ir", "export", "Rewriting a graph") from error
    try:
        return onnx_ir.load(graph)
    except Exception as error:  # whatever a parser makes of bytes that are no graph
        raise BundleError(
            f"{graph} cannot be read as an ONNX graph: {error}", hint="export the bundle again"
        ) from error


def _save_graph(model: Any, graph: Path, output: Path) -> None:
    """Write what became of the model of `graph` to `output`, its data beside it.

    Raises:
        BundleError: the weights of `graph`, which are read now, cannot be.
    """
    from onnx_ir.passes import common as passes

    from ...export.weights.data_file import save_graph

    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)
    try:
        save_graph(model, output, f"{output.name}.data", _INLINE_BYTES)
    except ValueError as error:
        raise BundleError(
            f"the weights of {graph} cannot be read: {error}",
            hint="copy the bundle to a folder of its own, or export it again",
        ) from error


def _head(logits: Any, products: Collection[Any], graph: Path) -> tuple[Any, list[Any]]:
    """Return the product that computes the logits, and the nodes after it."""
    node, following = logits.producer(), []
    while node is not None and node not in products and node.op_type != "MatMulNBits":
        if node.op_type not in (*_BY_ELEMENT, "Slice", "Cast"):
            raise UsageError(
                f"{graph}: its logits come from {node.op_type}, which trimming does not support",
                hint="a draft that was trimmed already cannot be trimmed again"
                if node.op_type == "ScatterElements"
                else "please report the model's architecture",
            )
        following.append(node)
        # The operand that is computed, not the constant: a scale may be on either side.
        node = next((v.producer() for v in node.inputs if v is not None and v.producer()), None)
    if node is None:
        raise UsageError(f"{graph}: no matrix product computes its logits")
    return node, following


def _is_of_minima(node: Any) -> bool:
    """Whether a node computes the term of a quantised matrix's minima; see `export.weights`."""
    return node is not None and node.op_type == "MatMul" and not node.inputs[1].is_initializer()


def _trim_blocks(graph: Any, head: Any, width: int, kept: NDArray[np.int64]) -> None:
    """Let a quantised head read the rows of the kept tokens."""
    import onnx_ir

    for index in range(1, len(head.inputs)):
        _trim_rows(graph, head, index, width, kept)
    head.attributes["N"] = onnx_ir.AttrInt64("N", len(kept))


def _trim_rows(graph: Any, node: Any, index: int, width: int, kept: NDArray[np.int64]) -> None:
    """Keep the rows of the kept tokens in an operand that is computed from constants."""
    value = node.inputs[index]
    if value is None or value.name.endswith(_KEPT):
        return
    if not value.is_initializer():
        for i in range(len(value.producer().inputs)):
            _trim_rows(graph, value.producer(), i, width, kept)
    elif value.shape.rank() and int(value.shape[0]) == width:
        new = lazy_value(
            graph,
            f"{value.name}{_KEPT}",
            value.const_value.dtype,
            (len(kept), *value.shape.numpy()[1:]),
            partial(_first_axis, value.const_value, kept),
        )
        node.replace_input_with(index, new)


def _trim_product(graph: Any, head: Any, kept: NDArray[np.int64]) -> None:
    """Let the head read the columns of the kept tokens."""
    import onnx_ir

    node, tensor = head.node, head.weight.const_value
    # Read directly; a weight behind a Transpose, such as a tied head, is written transposed.
    is_stored = node.inputs[1].is_initializer()
    by_rows = is_stored and head.is_transposed
    size = (len(kept), head.size[0]) if by_rows else (head.size[0], len(kept))

    def columns() -> NDArray[np.float32]:
        if head.is_transposed:
            rows: NDArray[np.float32] = tensor.numpy()[kept]
            return rows if by_rows else np.ascontiguousarray(rows.T)
        return np.ascontiguousarray(tensor.numpy()[:, kept])

    name = f"{head.weight.name}{_KEPT}"
    weight = lazy_value(graph, name, onnx_ir.DataType.FLOAT, size, columns)
    node.replace_input_with(1, weight)
    _trim_operands(graph, node, {head.size[1]}, kept)  # the bias of a Gemm


def _trim_operands(graph: Any, node: Any, widths: set[int], kept: NDArray[np.int64]) -> None:
    """Keep the part of a node's constants that belongs to the kept tokens.

    A Slice that cuts off padding of the head needs no change: kept ids lie below its end.
    """
    if node.op_type in ("Slice", "Cast"):
        return
    for index, value in enumerate(node.inputs):
        if value is None or not value.is_initializer() or value.name.endswith(_KEPT):
            continue
        shape = tuple(value.shape.numpy())
        if shape and shape[-1] in widths:
            new = lazy_value(
                graph,
                f"{value.name}{_KEPT}",
                value.const_value.dtype,
                (*shape[:-1], len(kept)),
                partial(_last_axis, value.const_value, kept),
            )
            node.replace_input_with(index, new)


def _first_axis(tensor: Any, kept: NDArray[np.int64]) -> NDArray[Any]:
    """Read the rows that belong to the kept tokens."""
    array: NDArray[Any] = np.ascontiguousarray(tensor.numpy()[kept])
    return array


def _last_axis(tensor: Any, kept: NDArray[np.int64]) -> NDArray[Any]:
    """Read the part that belongs to the kept tokens."""
    array: NDArray[Any] = np.ascontiguousarray(tensor.numpy()[..., kept])
    return array


def _narrow(node: Any, widths: set[int], size: int) -> None:
    """Correct the shapes that the graph states for `node` and for all that is computed from it."""
    import onnx_ir

    pending, seen = [node], {node}
    while pending:
        for value in pending.pop().outputs:
            if value.shape is not None and len(value.shape) and value.shape[-1] in widths:
                value.shape = onnx_ir.Shape([*value.shape[:-1], size])
            for reader, _ in value.uses():
                if reader not in seen:
                    seen.add(reader)
                    pending.append(reader)


def _expand(graph: Any, logits: Any, ids: Any, vocab_size: int) -> Any:
    """Return the logits [1, S, V] of all tokens from those [1, S, N] of the kept.

    They are scattered into rows of the lowest number. On CPUs that takes less than half the time of a
    Gather by position, or of a ScatterND between two Transposes.
    """
    import onnx_ir

    rows = onnx_ir.node("Shape", [logits], attributes={"end": 2})
    width = add_constant(graph, "vocab_size", np.array([vocab_size], dtype=np.int64))
    full = onnx_ir.node("Concat", [rows.outputs[0], width], attributes={"axis": 0})
    lowest = add_constant(graph, "lowest_logit", np.array(LOWEST, dtype=np.float32))
    empty = onnx_ir.node("Expand", [lowest, full.outputs[0]])
    size = onnx_ir.node("Shape", [logits])
    indices = onnx_ir.node("Expand", [ids, size.outputs[0]])
    whole = onnx_ir.node(
        "ScatterElements",
        [empty.outputs[0], indices.outputs[0], logits],
        attributes={"axis": 2},
    )
    graph.insert_after(logits.producer(), [rows, full, empty, size, indices, whole])
    value = whole.outputs[0]
    value.type, value.shape = logits.type, onnx_ir.Shape([*logits.shape[:-1], vocab_size])
    return value


def _map_ids(graph: Any, top: Any, ids: Any) -> None:
    """Let the second output of a TopK be ids of the vocabulary."""
    import onnx_ir

    places = top.outputs[1]
    mapped = onnx_ir.node("Gather", [ids, places], attributes={"axis": 0})
    value = mapped.outputs[0]
    value.type, value.shape = places.type, places.shape
    places.replace_all_uses_with(value, replace_graph_outputs=True)
    mapped.replace_input_with(1, places)
    value.name, places.name = places.name, "kept_places"
    graph.insert_after(top, mapped)
