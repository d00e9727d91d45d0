"""The folder of a trained arbiter, as `cospec-calibrate arbiter` writes it.

| file | |
|---|---|
| model.onnx | the graph |
| arbiter.json | `threshold`: the score above which a draft token is kept by default |
| certificate.json | what the arbiter is worth, and on which files that was measured; optional |
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from ..errors import CheckpointError
from ..runtime.arbitration.learned import LearnedArbiter
from ..runtime.bundle.certificate import CERTIFICATE, MAX_CERTIFICATE_BYTES, Hash, quality_on
from ..runtime.bundle.json_input import Kind, read_json
from ..runtime.bundle.manifest import ArbiterEntry

GRAPH = "arbiter/model.onnx"
"""Path of the graph in a bundle."""


@dataclass(frozen=True)
class ArbiterFolder:
    """An arbiter that can go into a bundle.

    Attributes:
        graph: path of its ONNX graph.
        threshold: score above which a draft token is kept by default.
        quality: the section `quality` of certificates, or None; see `runtime/bundle/certificate.py`.
    """

    graph: Path
    threshold: float
    quality: dict[str, Any] | None

    def add_to(self, bundle: Path) -> ArbiterEntry:
        """Copy the graph into the folder of a bundle that is being written; return its entry."""
        destination = bundle / GRAPH
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.graph, destination)
        LearnedArbiter(destination)  # refuses a graph with unknown inputs
        return ArbiterEntry(graph=GRAPH, threshold=self.threshold)

    def quality_on(self, sha256_of: Hash) -> dict[str, Any] | None:
        """Return the measured quality if it was measured on the files of this bundle, else None."""
        return quality_on(self.quality, sha256_of)


class _Settings(Struct):
    threshold: Annotated[float, Meta(ge=0, le=1)]


def read_arbiter(folder: Path) -> ArbiterFolder:
    """Read an arbiter's folder.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    settings = _read(folder / "arbiter.json", _Settings)
    graph, certificate = folder / "model.onnx", folder / CERTIFICATE
    quality = _read(certificate, dict[str, Any]) if certificate.exists() else None
    if not graph.is_file():
        raise CheckpointError(f"{graph} is missing", hint=_HINT)
    return ArbiterFolder(graph, settings.threshold, quality)


def _read(path: Path, kind: type[Kind]) -> Kind:
    limit = MAX_CERTIFICATE_BYTES
    return read_json(path, kind, max_bytes=limit, error=CheckpointError, hint=_HINT)


_HINT = "an arbiter is a folder with model.onnx and arbiter.json, as cospec-calibrate writes"
