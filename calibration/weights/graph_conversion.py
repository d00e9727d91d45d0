"""A decoder graph from one weight format to another, one weight in memory at a time.

The source's weights stay mapped from its file, and each new tensor is computed when it is written: a
conversion needs the memory of one weight in both forms, whatever the size of the model.

Weights of matrix products are converted: those that a MatMul or Gemm reads, directly or through a
Transpose, as a tied head does. Embeddings stay, since a pass reads only one row of them for each token;
`fp16` halves those too.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError, MissingExtraError, UsageError
from ...export.weights.products import Product, find_products, halve
from ...runtime.bundle.manifest import WeightFormat
from .formats import BLOCKWISE, INT8_ACTIVATIONS, products_saturate
from .rewrite import to_blocks, to_channels

DATA_SUFFIX = ".data"
"""What an external data file is called behind its graph's name."""

_INLINE_BYTES = 1024
"""Tensors below this stay inside the graph's file."""


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        products: matrix products that read converted weights.
        reduce_range: whether int8 weights keep to seven bits.
    """

    products: int
    reduce_range: bool


def convert(
    graph: Path, output: Path, weight_format: WeightFormat, *, reduce_range: bool | None = None
) -> Converted:
    """Write the decoder graph at `graph` with its weights in another format.

    Args:
        graph: `model.onnx` of an fp32 bundle, its external data beside it.
        output: path of the new graph; its data goes beside it, under its name and `.data`. What is
            there is replaced.
        weight_format: of the new graph; `fp32` copies the files.
        reduce_range: keep int8 weights to seven bits; None for what this CPU needs.

    Raises:
        MissingExtraError: onnx_ir is not installed.
        BundleError: the graph cannot be read.
        UsageError: its weights are not fp32: it was converted already, or exported in half precision.
    """
    model, products = load_graph(graph)
    output.parent.mkdir(parents=True, exist_ok=True)
    if weight_format == "fp32":
        copy_graph(graph, output)
        return Converted(0, reduce_range=False)
    narrow = weight_format in INT8_ACTIVATIONS and (
        products_saturate() if reduce_range is None else reduce_range
    )
    if weight_format == "fp16":
        halve(model)
    elif weight_format in BLOCKWISE:
        to_blocks(model, products, weight_format)
    else:
        to_channels(model, products, weight_format, reduce_range=narrow)
    save_graph(model, graph, output)
    return Converted(len(products), narrow)


def load_graph(graph: Path) -> tuple[Any, list[Product]]:
    """Open an fp32 decoder graph, its weights mapped from their file.

    Returns:
        The model of onnx_ir, and its products by a constant matrix in the graph's order.

    Raises:
        MissingExtraError, BundleError, UsageError: see `convert`.
    """
    model = read_graph(graph)
    import onnx_ir

    products = find_products(model.graph)
    if not products or any(p.weight.dtype != onnx_ir.DataType.FLOAT for p in products):
        raise UsageError(
            f"{graph} is no fp32 graph, and only those can be converted",
            hint="export the bundle with --precision fp32, and convert that",
        )
    return model, products


def read_graph(graph: Path) -> Any:
    """Open a graph, its weights mapped from their file; errors as in `convert`."""
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


def save_graph(model: Any, graph: Path, output: Path) -> None:
    """Write what became of the model of `graph` to `output`, its data beside it.

    Raises:
        BundleError: the weights of `graph`, which are read now, cannot be.
    """
    import onnx_ir
    from onnx_ir.passes import common as passes

    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)
    data = output.name + DATA_SUFFIX
    try:
        onnx_ir.save(model, output, external_data=data, size_threshold_bytes=_INLINE_BYTES)
    except ValueError as error:
        raise BundleError(
            f"the weights of {graph} cannot be read: {error}",
            hint="copy the bundle to a folder of its own, or export it again",
        ) from error


def copy_graph(graph: Path, output: Path) -> None:
    """Copy a graph and the data beside it. Not linked: tools refuse data that has a second name."""
    for suffix in ("", DATA_SUFFIX):
        source = graph.with_name(graph.name + suffix)
        if source.exists():  # a graph without large weights has no data file
            shutil.copyfile(source, output.with_name(output.name + suffix))
