"""Modules, graphs that pass the gate, and checkpoints that several tests of an export use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_runs import reference, write

from cospec.export import graph
from cospec.export import probes as gate_probes
from cospec.export.attention import Lowering
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve


@pytest.fixture(scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def module_of(checkpoint_of: Callable[..., Path]) -> Callable[[str], Any]:
    """One-layer modules, each loaded once."""
    loaded: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in loaded:
            folder = checkpoint_of(family, layers=1)
            loaded[family] = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
        return loaded[family]

    return get


@pytest.fixture(scope="module")
def mistral(module_of) -> Any:
    return module_of("mistral")


@pytest.fixture(scope="module")
def probes(mistral) -> list[gate_probes.Probe]:
    return reference(mistral)


@pytest.fixture(scope="module")
def healthy(mistral, tmp_path_factory) -> Path:
    """A graph that passes; copy it to break it."""
    return write(mistral, "portable", tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def copy(healthy, tmp_path) -> Path:
    shutil.copytree(healthy, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def llama(checkpoint_of: Callable[..., Path]) -> Path:
    return checkpoint_of("llama", layers=1)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Where bundles go."""
    return tmp_path / "models"


@pytest.fixture
def damaged(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    shutil.copytree(llama, tmp_path / "damaged")
    return tmp_path / "damaged"


@pytest.fixture(scope="module")
def trace_once() -> Iterator[pytest.MonkeyPatch]:
    """Repeat the first trace for every export of the module: the same checkpoint, the same graph."""
    right, kept = graph.trace, {}

    def trace(
        module: Any, lowering: Lowering, capacity: int, vocab_size: int, unshared: Any, *of: Any
    ) -> Any:
        key = (lowering, capacity, vocab_size, module.dtype, *unshared)
        if key not in kept:
            kept[key] = right(module, lowering, capacity, vocab_size, unshared, *of)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", trace)
        yield patch
