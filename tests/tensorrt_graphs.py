"""Small ONNX graphs for TensorRT: one attention layer over a cache, right or broken in one way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS, HEAD_DIM, CAPACITY, VOCAB = 4, 2, 32, 64, 96
WIDTH = HEADS * HEAD_DIM
HALF = TensorProto.FLOAT16


@dataclass(frozen=True)
class Broken:
    """What is wrong with a graph; by default nothing.

    Attributes:
        mask: "additive", "none" (everything is seen) or "causal" (the flag with nonpad_kv_seqlen).
        cache: "scatter", "concat" (a copy instead of an update) or "crossed" (key into value).
        unused_input: an input that nothing reads.
    """

    mask: str = "additive"
    cache: str = "scatter"
    unused_input: bool = False


def write_scatter_decoder(path: Path, broken: Broken | None = None) -> Path:
    """Write a one-layer decoder in the scatter form, without position encoding, and return `path`."""
    broken = broken or Broken()
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float16), name)

    kv_width = KV_HEADS * HEAD_DIM
    initializers = [
        weight("embedding", VOCAB, WIDTH),
        weight("wq", WIDTH, WIDTH),
        weight("wk", WIDTH, kv_width),
        weight("wv", WIDTH, kv_width),
        weight("head", WIDTH, VOCAB),
        numpy_helper.from_array(np.array([0, 0, HEADS, HEAD_DIM]), "q_shape"),
        numpy_helper.from_array(np.array([0, 0, KV_HEADS, HEAD_DIM]), "kv_shape"),
        numpy_helper.from_array(np.array([0, 0, WIDTH]), "flat_shape"),
        numpy_helper.from_array(np.arange(CAPACITY).reshape(1, 1, 1, -1), "columns"),
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array(1, np.int64), "one"),
        numpy_helper.from_array(np.array([1, 1, -1, 1]), "row_shape"),
        numpy_helper.from_array(np.array(0, np.float16), "seen"),
        numpy_helper.from_array(np.array(-65504, np.float16), "unseen"),
    ]
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["x"]),
        *(
            part
            for name, shape in (("q", "q_shape"), ("k", "kv_shape"), ("v", "kv_shape"))
            for part in (
                node("MatMul", ["x", f"w{name}"], [f"{name}_flat"]),
                node("Reshape", [f"{name}_flat", shape], [f"{name}_rows"]),
                node("Transpose", [f"{name}_rows"], [name], perm=[0, 2, 1, 3]),
            )
        ),
        node("Shape", ["input_ids"], ["width"], start=1, end=2),
        node("Squeeze", ["width"], ["width_scalar"]),
        node("Range", ["zero", "width_scalar", "one"], ["offsets"]),
        node("Add", ["cache_length", "offsets"], ["rows"]),
        *_cache_nodes(broken.cache),
        *_attention_nodes(broken.mask),
        node("Transpose", ["attended"], ["attended_rows"], perm=[0, 2, 1, 3]),
        node("Reshape", ["attended_rows", "flat_shape"], ["attended_flat"]),
        node("MatMul", ["attended_flat", "head"], ["logits"]),
    ]
    cache_shape = [1, KV_HEADS, CAPACITY, HEAD_DIM]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "S"]),
        helper.make_tensor_value_info("cache_length", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("past.0.key", HALF, cache_shape),
        helper.make_tensor_value_info("past.0.value", HALF, cache_shape),
    ]
    if broken.unused_input:
        inputs.append(helper.make_tensor_value_info("idle", HALF, [1]))
    outputs = [
        helper.make_tensor_value_info("logits", HALF, [1, "S", VOCAB]),
        helper.make_tensor_value_info("present.0.key", HALF, cache_shape),
        helper.make_tensor_value_info("present.0.value", HALF, cache_shape),
    ]
    return _save(path, nodes, inputs, outputs, initializers, opset=24)


def _cache_nodes(cache: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    if cache == "concat":  # a copy whose first rows fall out
        return [
            part
            for name, kind in (("k", "key"), ("v", "value"))
            for part in (
                node("Concat", [f"past.0.{kind}", name], [f"{kind}_longer"], axis=2),
                node(
                    "Slice",
                    [f"{kind}_longer", "slice_start", "slice_end", "slice_axis"],
                    [f"present.0.{kind}"],
                ),
            )
        ]
    sources = {"scatter": ("key", "value"), "crossed": ("value", "key")}[cache]
    return [
        node(
            "TensorScatter",
            [f"past.0.{source}", name, "cache_length"],
            [f"present.0.{kind}"],
            axis=-2,
        )
        for name, kind, source in (("k", "key", sources[0]), ("v", "value", sources[1]))
    ]


def _attention_nodes(mask: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    keys_values = ["present.0.key", "present.0.value"]
    if mask == "none":
        return [node("Attention", ["q", *keys_values], ["attended"])]
    if mask == "causal":
        return [
            node("Add", ["cache_length", "width"], ["filled"]),
            node(
                "Attention",
                ["q", *keys_values, "", "", "", "filled"],
                ["attended"],
                is_causal=1,
            ),
        ]
    return [
        node("Reshape", ["rows", "row_shape"], ["row_column"]),
        node("LessOrEqual", ["columns", "row_column"], ["visible"]),
        node("Where", ["visible", "seen", "unseen"], ["mask"]),
        node("Attention", ["q", *keys_values, "mask"], ["attended"]),
    ]


def write_linear(path: Path, form: str) -> Path:
    """Write x [1, S, 128] times a weight in the form `fp16`, `int8`, `int4` or `fp8`.

    The quantised weights are dequantised in the graph (weight-only): int8 and fp8 by channel, int4 by
    blocks of 32 with an explicit zero point, as TensorRT 10.x asks for.
    """
    rows, columns, block = 128, 64, 32
    rng = np.random.default_rng(0)
    scale = np.full(columns, 0.02, np.float16)
    nodes, initializers = [], []
    if form == "fp16":
        weight = rng.normal(0, 0.1, (rows, columns)).astype(np.float16)
        initializers.append(numpy_helper.from_array(weight, "w"))
    else:
        kind, low, high = {
            "int8": (TensorProto.INT8, -128, 128),
            "int4": (TensorProto.INT4, -8, 8),
            "fp8": (TensorProto.FLOAT8E4M3FN, -8, 8),
        }[form]
        values = rng.integers(low, high, rows * columns).tolist()
        initializers.append(helper.make_tensor("packed", kind, [rows, columns], values))
        attributes: dict[str, int] = {"axis": 1}
        if form == "int4":
            scale = np.full((rows // block, columns), 0.02, np.float16)
            attributes = {"axis": 0, "block_size": block}
        initializers.append(numpy_helper.from_array(scale, "scale"))
        initializers.append(helper.make_tensor("zero", kind, scale.shape, [0] * scale.size))
        nodes.append(
            helper.make_node("DequantizeLinear", ["packed", "scale", "zero"], ["w"], **attributes)
        )
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    return _save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", HALF, [1, "S", rows])],
        [helper.make_tensor_value_info("y", HALF, [1, "S", columns])],
        initializers,
        opset=21,
    )


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto],
    opset: int,
) -> Path:
    initializers += [
        numpy_helper.from_array(np.array([value]), name)
        for name, value in (
            ("slice_start", -CAPACITY),
            ("slice_end", np.iinfo(np.int64).max),
            ("slice_axis", 2),
        )
    ]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "test", inputs, outputs, [i for i in initializers if i.name in read]
    )
    for index, node in enumerate(graph.node):
        node.name = f"node_{index}"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = {24: 12, 21: 10}[opset]
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
