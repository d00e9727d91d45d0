"""A real graph in two lowerings, intact and damaged, and engines on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_graphs import CAPACITY, CPU, VOCAB, poisoned

from cospec.runtime.engines.onnxruntime import (
    OrtEngine,
)
from cospec.runtime.engines.protocol import GraphShape


@pytest.fixture(scope="module")
def graphs(
    tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], GraphShape]:
    """The target of the tiny bundle in two lowerings, each intact and with a poisoned token."""
    from transformers import AutoModelForCausalLM

    from cospec.export import graph

    folder = tmp_path_factory.mktemp("engine")
    model = AutoModelForCausalLM.from_pretrained(tiny_bundle.target, attn_implementation="eager")
    traced = graph.trace(model.eval(), "portable", CAPACITY, VOCAB)
    graph.write(traced, folder / "model.onnx")
    paths = {"gqa": tiny_bundle.root / "target/model.onnx", "portable": folder / "model.onnx"}
    for lowering in ("gqa", "portable"):
        for number in ("nan", "inf"):
            name = f"{lowering}-{number}"
            paths[name] = poisoned(paths[lowering], folder / name, float(number))
    shape = GraphShape(CAPACITY, VOCAB, 64, 8, traced.kv_shapes, "float32")
    return paths, shape


@pytest.fixture(scope="module")
def load(graphs: tuple[dict[str, Path], GraphShape]) -> Callable[..., OrtEngine]:
    paths, shape = graphs
    return lambda name="gqa", options=CPU: OrtEngine(paths[name], shape, options)


@pytest.fixture(scope="module")
def engine(load: Callable[..., OrtEngine]) -> OrtEngine:
    return load()
