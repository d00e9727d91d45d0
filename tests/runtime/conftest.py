"""A real bundle of random weights, made once for all tests of the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from factories import CHAT_TEMPLATE, perturbed, random_checkpoint

CAPACITY = 64


@dataclass(frozen=True)
class TinyBundle:
    """The bundle's folder and the checkpoints it was exported from: read them, never write."""

    root: Path
    target: Path
    draft: Path
    capacity: int = CAPACITY


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A random Llama, a perturbed copy as its draft (right about half the time), fp32, gqa."""
    from cospec.export.pipeline import ExportOptions, export_bundle

    folder = tmp_path_factory.mktemp("tiny")
    target = random_checkpoint(folder / "target", "llama", chat_template=CHAT_TEMPLATE)
    draft = perturbed(target, folder / "draft", noise=0.03)
    options = ExportOptions(str(target), str(draft), capacity=CAPACITY)
    return TinyBundle(export_bundle(options, folder / "models" / "tiny"), target, draft)
