"""Weight-only quantisation of an exported graph, in the form that TensorRT reads: DequantizeLinear.

The weights of the linear layers are rounded to the nearest value and dequantised in the graph, before
the MatMul that reads them. An embedding stays as it is, and so does a head that is tied to it.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

FORMS = ("int8", "int4", "fp8")
BLOCK = 32
"""Rows of a weight that share a scale in int4; the other forms have one for each column."""

_TYPES = {"int8": np.int8, "int4": ml_dtypes.int4, "fp8": ml_dtypes.float8_e4m3fn}
_LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)  # below it float16 loses digits
# float16 scales came with opset 19, blocks and int4 with 21. From 18 on, no operator that the exporter
# writes has changed but in the types it takes.
_OPSET = 21


def quantise(source: Path, output: Path, form: str) -> int:
    """Write the graph `source` at `output` with its linear weights in `form`; return how many.

    Raises:
        ValueError: a weight's rows are no multiple of BLOCK.
    """
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = [name for node in graph.node for name in node.input]
    nodes, done = [], 0
    for node in graph.node:
        name = node.input[1] if node.op_type == "MatMul" else ""
        if name in weights and readers.count(name) == 1 and len(weights[name].dims) == 2:
            tensor = weights[name]
            values, scale = quantised(numpy_helper.to_array(tensor), form)
            graph.initializer.remove(tensor)
            # TensorRT 10.x takes the type from the zero point, where there is one.
            zero = np.zeros(scale.shape, values.dtype)
            parts = [f"{name}.{form}", f"{name}.scale", f"{name}.zero"]
            for part, array in zip(parts, (values, scale, zero), strict=True):
                graph.initializer.append(numpy_helper.from_array(array, part))
            how = {"axis": 0, "block_size": BLOCK} if form == "int4" else {"axis": 1}
            nodes.append(
                helper.make_node("DequantizeLinear", parts, [name], f"{node.name}_weight", **how)
            )
            done += 1
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    (opset,) = (entry for entry in model.opset_import if not entry.domain)
    opset.version = max(opset.version, _OPSET)
    model.ir_version = max(model.ir_version, 10)
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model,
        output,
        save_as_external_data=True,
        location=f"{output.name}.data",
        size_threshold=1024,
    )
    onnx.checker.check_model(str(output))
    return done


def quantised(weight: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Round a weight [rows, columns] to `form`; return its values and their scales.

    The scales are [columns], in int4 [rows / BLOCK, columns], in the weight's own type.

    Raises:
        ValueError: the rows are no multiple of BLOCK.
    """
    rows, columns = weight.shape
    block = BLOCK if form == "int4" else rows
    if rows % block:
        raise ValueError(f"{rows} rows are no multiple of {block}")
    blocks = weight.astype(np.float32).reshape(rows // block, block, columns)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scale = np.maximum(largest / _LARGEST[form], _SMALLEST_SCALE).astype(weight.dtype)
    ratio = blocks / scale.astype(np.float32)
    ratio = ratio.clip(-_LARGEST[form], _LARGEST[form])
    values = (ratio if form == "fp8" else np.rint(ratio)).reshape(rows, columns)
    shape = (rows // block, columns) if form == "int4" else (columns,)
    return values.astype(_TYPES[form]), scale.reshape(shape)
