"""Operators of ONNX Runtime for patterns that its own optimiser does not recognise in our graphs.

A root-mean-square norm is six small operators as torch exports it, and a decode step has two a layer:
on a small model their overhead is a third of the time outside the matrices. The rules are onnxscript's.
Whether the graph still computes the same is the parity gate's business, as for every graph.
"""

from __future__ import annotations

from typing import Any


def fuse_norms(model: Any) -> None:
    """Replace root-mean-square norms, with the residual sum before them where there is one, in place.

    Only for graphs that ONNX Runtime alone will read: these operators are its own.
    """
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
    from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

    fuse_rms_normalization(model)
    fuse_skip_rms_normalization(model)
