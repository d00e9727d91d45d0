"""Installing an arbiter and its certificate in a bundle, by writing the bundle again.

Unchanged files are linked, not copied, where the file system can; the new bundle takes the old one's
name in one step, as with any export.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from msgspec.structs import replace

from ...export.arbiter_folder import GRAPH, read_arbiter
from ...runtime.bundle.certificate import (
    CERTIFICATE,
    hashes_of,
    read_certificate,
    write_certificate,
)
from ...runtime.bundle.files import sha256_of
from ...runtime.bundle.reader import Bundle
from ...runtime.bundle.writer import BundleWriter


def install_arbiter(root: Path, folder: Path) -> Path:
    """Write the bundle at `root` again with the arbiter of `folder` and its certificate.

    Args:
        root: the bundle's folder.
        folder: see `export.arbiter_folder`.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the folder holds no arbiter.
        ResourceError: the bundle's folder cannot be written, or another process is writing it.
    """
    bundle, arbiter = Bundle.open(root), read_arbiter(folder)
    manifest = bundle.manifest
    with BundleWriter(root, force=True) as writer:
        for entry in manifest.files:
            if entry.path not in (GRAPH, CERTIFICATE):
                _link(bundle.path(entry.path), writer.path(entry.path))
        models = replace(manifest.models, arbiter=arbiter.add_to(writer.staging))
        certificate = read_certificate(root, manifest)
        # The unchanged files were hashed when the bundle was opened.
        hashes = hashes_of(manifest) | {GRAPH: sha256_of(arbiter.graph)}
        certificate["quality"] = arbiter.quality_on(hashes.get)
        write_certificate(writer.staging, certificate)
        return writer.commit(replace(manifest, models=models, certificate=CERTIFICATE, files=()))


def measured_files(bundle: Bundle) -> dict[str, str]:
    """Return the hashes of the decoders' files, on which every quality figure depends."""
    return {
        entry.path: entry.sha256
        for entry in bundle.manifest.files
        if entry.path.startswith(("target/", "draft/"))
    }


def measured_on(bundle: Bundle, graph: Path) -> dict[str, str]:
    """Return the hashes of the decoders' files and of an arbiter's graph, for its certificate."""
    return {**measured_files(bundle), GRAPH: sha256_of(graph)}


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, destination)
