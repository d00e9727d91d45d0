"""The weight formats, and what this machine's CPU asks of them.

| format | weights | activations |
|---|---|---|
| fp32 | as exported | fp32 |
| fp16 | half precision, widened to fp32 when the graph is loaded | fp32 |
| int8 | int8, a scale for each output channel | uint8, one scale for all rows of a pass |
| int8-rows | as int8 | uint8, a scale for each row of a pass |
| int8-weights | int8, a scale for each block of 128 inputs | int8 inside the kernel, by row and block |
| int4 | int4, a scale and zero point for each block of 32 inputs | as int8-weights |
| int4-128 | the same for each block of 128 inputs | as int8-weights |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from ...errors import UsageError
from ...runtime.bundle.manifest import WeightFormat
from ...runtime.engines.onnxruntime import import_onnxruntime

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

INT8_ACTIVATIONS: tuple[WeightFormat, ...] = ("int8", "int8-rows")
"""Formats whose graphs round activations too."""


@dataclass(frozen=True)
class Blockwise:
    """How a weight-only format stores a weight, as ONNX Runtime's MatMulNBits reads it.

    Attributes:
        bits: of a weight.
        block: inputs that share a scale.
        is_symmetric: whether blocks have no zero point.
        accuracy_level: 4 lets the kernel compute in int8. Level 1 of the 8-bit kernel is slower than
            fp32 by an order of magnitude.
    """

    bits: Literal[4, 8]
    block: int
    is_symmetric: bool
    accuracy_level: int = 4


BLOCKWISE: dict[WeightFormat, Blockwise] = {
    "int8-weights": Blockwise(bits=8, block=128, is_symmetric=True),
    "int4": Blockwise(bits=4, block=32, is_symmetric=False),
    "int4-128": Blockwise(bits=4, block=128, is_symmetric=False),
}


def parse_format(text: str) -> WeightFormat:
    """Return the format called `text`.

    Raises:
        UsageError: there is none.
    """
    for name in WEIGHT_FORMATS:
        if name == text:
            return name
    raise UsageError(
        f"unknown weight format '{text}'", hint=f"the formats are: {', '.join(WEIGHT_FORMATS)}"
    )


@lru_cache(maxsize=1)
def products_saturate() -> bool:
    """Say whether this CPU's int8 products overflow, so that weights must keep to seven bits.

    x86 without VNNI adds pairs of products of eight bits in sixteen, with saturation. What ONNX
    Runtime does about it depends on its version and on the CPU, so it is tried: a product whose pairs
    overflow sixteen bits is compared with the exact one, for one row and for several.
    """
    import onnx
    from onnx import TensorProto, helper

    size = 64
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    weight = np.full((size, size), 127, dtype=np.int8)
    graph = helper.make_graph(
        [node],
        "products",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", size])],
        # As an initializer it is packed at load, as a model's weights are.
        [onnx.numpy_helper.from_array(weight, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for rows in (1, 4):
        found = session.run(None, {"a": np.full((rows, size), 255, dtype=np.uint8)})[0]
        if not np.array_equal(found, np.full((rows, size), 255 * 127 * size)):
            return True
    return False
