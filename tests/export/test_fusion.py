"""Which operators are fused for ONNX Runtime, and that what only looks alike is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch

from cospec.export import graph
from cospec.export.fusion import fuse
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve

CAPACITY, VOCAB, LAYERS = 32, 320, 2
S, HEADS, DIM = 5, 2, 8
HIDDEN = HEADS * DIM
EPSILON = 1e-3

NORM, ROTARY = "SkipSimplifiedLayerNormalization", "RotaryEmbedding"


@pytest.mark.parametrize(
    ("family", "norms", "rotations"),
    [
        ("llama", 2, 2),
        ("mistral", 2, 2),
        ("qwen2", 2, 2),
        ("qwen3", 2, 2),  # norms of heads, which follow no sum, stay
        ("phi3", 2, 2),
        ("gemma2", 2, 2),  # the weight of a norm is computed: 1 + w
        ("gemma3_text", 2, 2),  # heads are turned before they are normed
        ("smollm3", 2, 1),  # one layer in two has no rotation
        ("phi", 0, 0),  # rotates a part of each head
        ("gpt_neox", 0, 0),
        ("gpt2", 0, 0),
    ],
)
def test_what_is_fused_in_a_layer_of_each_family(
    checkpoint_of: Callable[..., Path], family: str, norms: int, rotations: int
) -> None:
    folder = checkpoint_of(family, layers=LAYERS)
    module = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    found = Counter(
        node.op_type for node in graph.trace(module, "gqa", CAPACITY, VOCAB).model.graph
    )
    assert (found[NORM], found[ROTARY]) == (norms * LAYERS, rotations * LAYERS)


def test_nothing_is_turned_over_around_attention_in_a_llama(
    checkpoint_of: Callable[..., Path],
) -> None:
    module = load_module(open_checkpoint(resolve(str(checkpoint_of("llama")))), torch.float32)
    nodes = list(graph.trace(module, "gqa", CAPACITY, VOCAB).model.graph)
    for attention in (node for node in nodes if node.op_type == "GroupQueryAttention"):
        makers = [value.producer().op_type for value in attention.inputs[:3]]
        assert makers == [ROTARY, ROTARY, "MatMul"]
        (reader,) = attention.outputs[0].uses()
        assert reader.node.op_type == "MatMul"


class Builder:
    """A graph in the making: nodes by name, constants as they come."""

    def __init__(self) -> None:
        self.inputs: list[onnx_ir.Value] = []
        self.nodes: list[onnx_ir.Node] = []
        self.constants: list[onnx_ir.Value] = []

    def rows(self, name: str, *shape: int) -> onnx_ir.Value:
        value = onnx_ir.Value(
            name=name,
            shape=onnx_ir.Shape(shape),
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT),
        )
        self.inputs.append(value)
        return value

    def constant(self, array: Any, dtype: type = np.int64) -> onnx_ir.Value:
        tensor = onnx_ir.tensor(np.array(array, dtype=dtype))
        value = onnx_ir.Value(
            name=f"c{len(self.constants)}",
            shape=tensor.shape,
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.constants.append(value)
        return value

    def op(self, op: str, *inputs: Any, shape: tuple[int, ...] = (), **attributes: Any) -> Any:
        node = onnx_ir.node(op, list(inputs), attributes=attributes)
        node.outputs[0].shape = onnx_ir.Shape(shape)
        node.outputs[0].dtype = onnx_ir.DataType.FLOAT
        self.nodes.append(node)
        return node.outputs[0]

    def model(self, *outputs: Any) -> onnx_ir.Model:
        made = onnx_ir.Graph(
            self.inputs,
            list(outputs),
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": 18, "com.microsoft": 1},
            name="test",
        )
        for i, node in enumerate(self.nodes):
            node.outputs[0].name = f"n{i}"
        return onnx_ir.Model(made, ir_version=10)


def norm(axis: int = -1, power: float = 2.0, is_sum: bool = True) -> onnx_ir.Model:
    """A root-mean-square norm, behind a sum whose result is read on."""
    b = Builder()
    x = b.rows("a", 1, S, HIDDEN)
    if is_sum:
        x = b.op("Add", x, b.rows("b", 1, S, HIDDEN), shape=(1, S, HIDDEN))
    squares = b.op("Pow", x, b.constant(power, np.float32), shape=(1, S, HIDDEN))
    mean = b.op("ReduceMean", squares, b.constant([axis]), shape=(1, S, 1), keepdims=1)
    shifted = b.op("Add", mean, b.constant(EPSILON, np.float32), shape=(1, S, 1))
    inverse = b.op("Reciprocal", b.op("Sqrt", shifted, shape=(1, S, 1)), shape=(1, S, 1))
    scaled = b.op("Mul", x, inverse, shape=(1, S, HIDDEN))
    weight = b.constant(np.linspace(0.5, 2, HIDDEN), np.float32)
    normed = b.op("Mul", weight, scaled, shape=(1, S, HIDDEN))
    read = b.op("Neg", normed, shape=(1, S, HIDDEN))
    residual = b.op("Add", x, read, shape=(1, S, HIDDEN))
    return b.model(read, residual)


def rotated(
    first: tuple[int, int] = (0, DIM // 2), same_halves: bool = True, axis: int = 3
) -> onnx_ir.Model:
    """Queries that are rotated and handed to GroupQueryAttention, keys and values as they come."""
    b = Builder()
    q, k, v = (b.rows(name, 1, S, HIDDEN) for name in "qkv")
    angles, others = b.rows("angles", 1, S, DIM // 2), b.rows("others", 1, S, DIM // 2)
    wide = b.op("Concat", angles, angles if same_halves else others, shape=(1, S, DIM), axis=-1)
    tables = []
    for op in ("Cos", "Sin"):
        table = b.op(op, wide, shape=(1, S, DIM))
        tables.append(b.op("Unsqueeze", table, b.constant([1]), shape=(1, 1, S, DIM)))
    split = b.op("Reshape", q, b.constant([1, S, HEADS, DIM]), shape=(1, S, HEADS, DIM))
    x = b.op("Transpose", split, shape=(1, HEADS, S, DIM), perm=[0, 2, 1, 3])

    def half(start: int, end: int) -> Any:
        bounds = [b.constant([each]) for each in (start, end, axis)]
        return b.op("Slice", x, *bounds, shape=(1, HEADS, S, DIM // 2))

    second = (DIM - first[1], DIM - first[0])
    turned = b.op(
        "Concat",
        b.op("Neg", half(*second), shape=(1, HEADS, S, DIM // 2)),
        half(*first),
        shape=(1, HEADS, S, DIM),
        axis=-1,
    )
    straight = b.op("Mul", x, tables[0], shape=(1, HEADS, S, DIM))
    crossed = b.op("Mul", turned, tables[1], shape=(1, HEADS, S, DIM))
    query = b.op("Add", straight, crossed, shape=(1, HEADS, S, DIM))
    back = b.op("Transpose", query, shape=(1, S, HEADS, DIM), perm=[0, 2, 1, 3])
    flat = b.op("Reshape", back, b.constant([1, S, HIDDEN]), shape=(1, S, HIDDEN))
    attended = b.op("GroupQueryAttention", flat, k, v, shape=(1, S, HIDDEN))
    return b.model(attended)


def operators(model: onnx_ir.Model) -> Counter[str]:
    """Fuse and count."""
    fuse(model)
    return Counter(node.op_type for node in model.graph)


def test_a_norm_behind_a_sum_is_one_operator_with_its_epsilon_and_its_sum() -> None:
    model = norm()
    found = operators(model)
    (fused,) = (node for node in model.graph if node.op_type == NORM)
    assert fused.domain == "com.microsoft"
    assert fused.attributes["epsilon"].as_float() == pytest.approx(EPSILON)
    residual = next(node for node in model.graph if node.outputs[0] is model.graph.outputs[1])
    assert residual.inputs[0] is fused.outputs[3]
    assert found[NORM] == 1


@pytest.mark.parametrize("change", [{"axis": 1}, {"power": 3.0}, {"is_sum": False}])
def test_what_is_no_such_norm_stays(change: dict[str, Any]) -> None:
    assert operators(norm(**change))[NORM] == 0


def test_a_rotation_is_one_operator() -> None:
    model = rotated()
    assert operators(model)[ROTARY] == 1
    (fused,) = (node for node in model.graph if node.op_type == ROTARY)
    assert fused.inputs[0].name == "q"
    assert fused.attributes["num_heads"].as_int() == HEADS


@pytest.mark.parametrize(
    "change",
    [
        {"first": (DIM // 2, DIM)},  # turned the other way round
        {"first": (0, DIM // 4)},  # a part of the head
        {"same_halves": False},  # a table whose halves differ
        {"axis": 2},
    ],
)
def test_what_is_no_such_rotation_stays(change: dict[str, Any]) -> None:
    assert operators(rotated(**change))[ROTARY] == 0
