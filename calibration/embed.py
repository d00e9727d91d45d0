"""Putting an arbiter and its certificate into a bundle, by writing the bundle anew.

The files that stay are linked, not copied, where the file system can; the new bundle takes the old
one's name in one step, as with any export.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..export.bundle_writer import BundleWriter
from ..runtime.bundle import Bundle
from ..runtime.files import sha256_of
from ..runtime.manifest import ArbiterEntry

ARBITER_GRAPH = "arbiter/model.onnx"
CERTIFICATE = "certificate.json"


def embed_arbiter(root: Path, graph: Path, threshold: float, quality: dict[str, Any]) -> Path:
    """Write the bundle at `root` anew with `graph` as its arbiter.

    Args:
        root: the bundle's folder.
        graph: the arbiter's ONNX graph.
        threshold: score above which a draft token stays by default.
        quality: what was measured; the `quality` part of the certificate. The hashes of the files that
            it was measured on are added.

    Raises:
        BundleError: the bundle is damaged.
        ResourceError: the folder cannot be written, or another process is writing it.
    """
    bundle = Bundle.open(root)
    manifest = bundle.manifest
    with BundleWriter(root, force=True) as writer:
        for entry in manifest.files:
            if entry.path not in (ARBITER_GRAPH, CERTIFICATE):
                _link(bundle.path(entry.path), writer.path(entry.path))
        shutil.copy(graph, writer.path(ARBITER_GRAPH))
        measured = {**measured_files(bundle), ARBITER_GRAPH: sha256_of(graph)}
        certificate = {}
        if manifest.certificate is not None:
            certificate = json.loads(bundle.path(manifest.certificate).read_text(encoding="utf-8"))
        certificate["quality"] = {**quality, "measured_on": measured}
        text = json.dumps(certificate, indent=2) + "\n"
        writer.path(CERTIFICATE).write_text(text, encoding="utf-8")
        models = replace(
            manifest.models, arbiter=ArbiterEntry(graph=ARBITER_GRAPH, threshold=threshold)
        )
        return writer.commit(replace(manifest, models=models, certificate=CERTIFICATE, files=()))


def measured_files(bundle: Bundle) -> dict[str, str]:
    """Return the hashes of the decoders' files: what a quality figure is a figure of."""
    return {
        entry.path: entry.sha256
        for entry in bundle.manifest.files
        if entry.path.startswith(("target/", "draft/"))
    }


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, destination)
