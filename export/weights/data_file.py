"""Write a graph with its weights in a data file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir


def save_graph(model: Any, path: Path, data: str, inline_bytes: int) -> None:
    """Write the graph at `path`, one tensor in memory at a time.

    Args:
        model: the graph.
        path: of the graph's file.
        data: name of the file of its weights.
        inline_bytes: tensors below this stay inside the graph's file.

    Raises:
        OSError: also if the data file is shorter than it should be. numpy's `tofile` does not report
            the last kilobytes that a full disk, or a limit of file sizes, did not take.
    """
    onnx_ir.save(model, path, external_data=data, size_threshold_bytes=inline_bytes)
    values = (each.const_value for each in onnx_ir.load(path).graph.initializers.values())
    ends = [(v.offset or 0) + v.nbytes for v in values if isinstance(v, onnx_ir.ExternalTensor)]
    if ends and (written := path.with_name(data).stat().st_size) < max(ends):
        raise OSError(f"{max(ends)} requested and {written} written")
