"""Check that TensorRT's parser kept every input of the ONNX nodes: it drops some without an error."""

from __future__ import annotations

from typing import Any

from ..errors import GateError
from ..runtime.tensorrt.builder import ParsedGraph
from ..runtime.tensorrt.lint import Network, inputs_of

CHECKED_OPS = ("Attention", "TensorScatter")
"""Operators whose optional inputs change the result."""


def lint_inputs(trt: Any, parsed: ParsedGraph) -> None:
    """Refuse a network in which an Attention or TensorScatter lost one of its inputs.

    Raises:
        GateError: names the node and the input.
    """
    import onnx

    model = onnx.load(parsed.graph, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    network = Network(trt, parsed.network)
    for node in model.graph.node:
        if node.op_type not in CHECKED_OPS:
            continue
        # The first layer of an attention has the node's name and no metadata.
        own = [
            layer
            for layer in network.layers
            if layer.metadata == f"[ONNX Layer: {node.name}]"
            or layer.name == f"{node.name}_AttentionInput"
        ]
        read = {name for layer in own for name in _read_by(network, layer)}
        dropped = [name for name in node.input if name and name not in read | constants]
        if dropped:
            raise GateError(
                f"{parsed.graph.name}: TensorRT's parser dropped the input {', '.join(dropped)} of the "
                f"{node.op_type} node '{node.name}' without an error",
                hint="the engine would compute something else; export with --lowering portable",
            )


def _read_by(network: Network, layer: Any) -> set[str]:
    """Return the names that a layer reads, directly or through a cast or a scaling before it.

    The parser inserts these layers, and they have no metadata of their node.
    """
    between = (network.trt.LayerType.CAST, network.trt.LayerType.ELEMENTWISE)
    names = {tensor.name for tensor in inputs_of(layer)}
    for name in list(names):
        before = network.producer.get(name)
        if before is not None and before.type in between:
            names |= {tensor.name for tensor in inputs_of(before)}
    return names
