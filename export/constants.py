"""Constants that are put into a graph."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def add_constant(graph: Any, name: str, array: NDArray[Any]) -> Any:
    """Add an initializer to an onnx_ir graph, under a name that it does not have yet."""
    import onnx_ir

    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
