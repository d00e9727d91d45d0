"""A trained arbiter on its way into bundles: a folder as `cospec-calibrate arbiter` leaves it.

| file | |
|---|---|
| model.onnx | the graph |
| arbiter.json | `threshold`, the default score above which a draft token stays |
| certificate.json | what it was measured to be worth, and hashes of what it was measured on; optional |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..runtime.arbitration.learned import LearnedArbiter
from ..runtime.bundle.manifest import ArbiterEntry

GRAPH = "arbiter/model.onnx"
"""Where the graph lies in a bundle."""


@dataclass(frozen=True)
class ArbiterFolder:
    """An arbiter that can go into a bundle.

    Attributes:
        graph: path of its ONNX graph.
        threshold: score above which a draft token stays by default.
        quality: what it was measured to be worth, or None. Its `measured_on` holds the hash of each
            file that the figures depend on, by its path in a bundle.
    """

    graph: Path
    threshold: float
    quality: dict[str, Any] | None

    def add_to(self, bundle: Path) -> ArbiterEntry:
        """Copy the graph into the folder of a bundle that is being written; return its entry."""
        destination = bundle / GRAPH
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.graph, destination)
        LearnedArbiter(destination)  # refuses what no decoder could feed
        return ArbiterEntry(graph=GRAPH, threshold=self.threshold)

    def quality_on(self, sha256_by_path: Callable[[str], str | None]) -> dict[str, Any] | None:
        """Return what was measured if it was measured on the very files of a bundle, else None.

        Args:
            sha256_by_path: returns the hash of a file of the bundle, None if it is not there.
        """
        if self.quality is None:
            return None
        measured = self.quality["measured_on"].items()
        return self.quality if all(sha256_by_path(p) == h for p, h in measured) else None


def read_arbiter(folder: Path) -> ArbiterFolder:
    """Read an arbiter's folder.

    Raises:
        CheckpointError: something is missing or not what it should be.
    """
    try:
        settings = json.loads((folder / "arbiter.json").read_text(encoding="utf-8"))
        threshold = float(settings["threshold"])
        certificate = folder / "certificate.json"
        quality = None
        if certificate.is_file():
            quality = json.loads(certificate.read_text(encoding="utf-8"))
            dict(quality["measured_on"])  # without it, nothing says what the figures are figures of
        graph = folder / "model.onnx"
        graph.stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no arbiter: {error}",
            hint="an arbiter is a folder with model.onnx and arbiter.json, as cospec-calibrate writes",
        ) from error
    return ArbiterFolder(graph, threshold, quality)
