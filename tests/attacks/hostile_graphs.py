"""Changes of a decoder's or an arbiter's graph that were made to harm; `hostile_bundles` tries them."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper


def dimension(of: str, name: str, axis: int, size: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        (value,) = (value for value in getattr(model.graph, of) if value.name == name)
        value.type.tensor_type.shape.dim[axis].dim_value = size

    return edit


def dtype(of: str, name: str, dtype: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        (value,) = (value for value in getattr(model.graph, of) if value.name == name)
        value.type.tensor_type.elem_type = dtype

    return edit


def drop(of: str, name: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        values = getattr(model.graph, of)
        kept = [value for value in values if value.name != name]
        del values[:]
        values.extend(kept)

    return edit


def rename_output(old: str, new: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        for value in model.graph.output:
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
            node.input[:] = [new if name == old else name for name in node.input]

    return edit


def extra_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def replace_output(
    name: str, make: Callable[[str], list[onnx.NodeProto]]
) -> Callable[[onnx.ModelProto], object]:
    """Return an edit that computes an output by `make(the old value's name)` instead."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = [f"{name}.old" if each == name else each for each in node.output]
            node.input[:] = [f"{name}.old" if each == name else each for each in node.input]
        model.graph.node.extend(make(f"{name}.old"))

    return edit


def loop_for_ever(name: str, kind: int) -> Callable[[onnx.ModelProto], object]:
    """Return an edit that passes an output through a loop of 2^62 turns."""

    def make(old: str) -> list[onnx.NodeProto]:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["go_on"]),
                helper.make_node("Identity", ["carried"], ["carried_on"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried", kind, None),
            ],
            [
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried_on", kind, None),
            ],
        )
        turns = helper.make_tensor("turns", TensorProto.INT64, [], [1 << 62])
        always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
        return [
            helper.make_node("Constant", [], ["turns"], value=turns),
            helper.make_node("Constant", [], ["always"], value=always),
            helper.make_node("Loop", ["turns", "always", old], [name], body=body),
        ]

    return replace_output(name, make)


def external(**changes: str) -> Callable[[onnx.ModelProto], object]:
    """Return an edit of where the first external tensor lies."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)

    return edit


def scrambled(data: bytes) -> bytes:
    """Write the first entry of external data with its value before its key."""
    key = b"\x0a\x08location"
    at = data.index(key)
    length = data[at + len(key) + 1]
    value = data[at + len(key) : at + len(key) + 2 + length]
    return data[:at] + value + key + data[at + len(key) + len(value) :]


def padded(data: bytes) -> bytes:
    """Write the length of the first key of external data in two bytes instead of one."""
    at = data.index(b"\x0a\x08location")
    size = data[at - 1]
    # The tensor around it keeps its old length: the file is refused before anybody reads that.
    return data[: at - 1] + bytes([size + 1]) + b"\x0a\x88\x00location" + data[at + 10 :]


def rank(name: str, rank: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        (value,) = (value for value in model.graph.output if value.name == name)
        del value.type.tensor_type.shape.dim[:]
        for _ in range(rank):
            value.type.tensor_type.shape.dim.add().dim_value = 2

    return edit
