"""A TensorRT engine on a simulated device, and ONNX Runtime on the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated_cuda import SimulatedCuda
from simulated_tensorrt import VERSIONS, SimulatedTensorRt, simulated_plan

from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.decoding.placement import graph_shape
from cospec.runtime.engines.onnxruntime import OrtDecoder, OrtEngine, OrtOptions
from cospec.runtime.engines.protocol import GraphShape
from cospec.runtime.tensorrt.engine import TensorRtEngine

WIDTHS = [(1, 1, 1), (2, 4, 4), (1, 64, 64)]
PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84]
EVERYTHING = (
    "top_values",
    "top_ids",
    "entropy",
    "next_input_logprob",
    "hidden",
    "logits",
)
FORMS = pytest.mark.parametrize("form", ["scatter", "portable"])


class Rig:
    """An engine on a simulated device of its own, and ONNX Runtime on the same graph."""

    def __init__(self, bundle: Path, form: str) -> None:
        manifest = read_manifest(bundle)
        self.form = form
        self.graph = bundle / manifest.models.target.graph
        self.shape: GraphShape = graph_shape(manifest, manifest.models.target)
        self.cuda = SimulatedCuda()
        self.trt = SimulatedTensorRt(self.cuda, VERSIONS[form])

    def plan(self, **changes: Any) -> bytes:
        facts: dict[str, Any] = {"widths": WIDTHS, "in_place": self.form == "scatter"}
        facts |= {"version": self.trt.__version__} | changes
        return simulated_plan(self.graph, **facts)

    def engine(self, plan: bytes | None = None, **changes: Any) -> TensorRtEngine:
        facts: dict[str, Any] = {"shape": self.shape, "lowering": self.form} | changes
        return TensorRtEngine(
            plan or self.plan(),
            **facts,
            trt=self.trt,
            cuda=self.cuda,
        )

    def reference(self, outputs: tuple[str, ...] = EVERYTHING) -> OrtDecoder:
        options = OrtOptions(provider="cpu", threads=1)
        return OrtEngine(self.graph, self.shape, options).decoder(outputs)
