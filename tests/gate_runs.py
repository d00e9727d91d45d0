"""Runs of the gate on small modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factories import SLIDING_WINDOW

from cospec.export import gate, graph
from cospec.export import probes as gate_probes
from cospec.export.attention import Lowering
from cospec.export.decoder import kv_shapes
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions
from cospec.runtime.engines.protocol import GraphShape

CAPACITY, VOCAB, WIDEST, TOP = 96, 320, 4, 8
# role, step and size, as in "draft graph, decode of 1 tokens at 31: a logit differs by 0.3, ..."
STEP = r"draft graph, (prefill chunk|decode|verify|verify after a jump) of \d+ tokens at \d+: "
DIFFERS = STEP + r"a logit differs from transformers by [\d.e-]+, [\d.e-]+ of the largest logit"


def reference(module: Any) -> list[gate_probes.Probe]:
    return gate_probes.reference(module, CAPACITY, VOCAB, WIDEST, [SLIDING_WINDOW])


def write(module: Any, lowering: Lowering, folder: Path) -> Path:
    graph.write(graph.trace(module, lowering, CAPACITY, VOCAB), folder / "model.onnx")
    return folder


def check(folder: Path, module: Any, probes: Sequence[gate_probes.Probe]) -> gate.GateReport:
    shapes = tuple(kv_shapes(module))
    hidden = module.config.hidden_size
    shape = GraphShape(CAPACITY, VOCAB, hidden, TOP, shapes, "float32")
    engine = OrtEngine(folder / "model.onnx", shape, OrtOptions(provider="cpu"))
    return gate.check(engine, probes, "fp32", "draft")
