"""Arbiters for tests: untrained graphs, and bundles that hold one.

Import it from any test (`from arbiters import untrained_graph`): pytest puts tests/ on the path.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cospec.runtime.bundle.files import sha256_of
from cospec.runtime.bundle.manifest import MANIFEST_NAME, ArbiterEntry, FileEntry, to_json
from cospec.runtime.bundle.reader import read_manifest

GRAPH = "arbiter/model.onnx"


def untrained_network(bundle: Path, features: str = "a", seed: int = 0) -> Any:
    """A random arbiter for a bundle, whose scores lie on both sides of one half."""
    import torch

    from cospec.calibration.arbiter.network import ArbiterConfig, ArbiterNetwork

    models = read_manifest(bundle).models
    assert models.draft is not None
    config = ArbiterConfig(
        features=features,  # type: ignore[arg-type]
        target_hidden=models.target.hidden_size,
        draft_hidden=models.draft.hidden_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ArbiterNetwork(config)
        network.mean.normal_()
        network.std.uniform_(1.0, 3.0)
    return network.eval()


def bundle_with_arbiter(
    bundle: Path, graph: Path, output: Path, threshold: float = 0.5, quality: bool = False
) -> Path:
    """Copy a bundle and put an arbiter into it; `quality` says whether its certificate knows it."""
    shutil.copytree(bundle, output)
    (output / GRAPH).parent.mkdir()
    shutil.copyfile(graph, output / GRAPH)
    certificate = output / "certificate.json"
    facts = json.loads(certificate.read_text(encoding="utf-8"))
    facts.pop("quality", None)
    if quality:
        measured = {GRAPH: sha256_of(output / GRAPH)}
        facts["quality"] = {"collab": {"accuracy": 0.5}, "measured_on": measured}
    certificate.write_text(json.dumps(facts), encoding="utf-8")
    manifest = read_manifest(output)
    paths = {entry.path for entry in manifest.files} | {GRAPH}
    files = tuple(
        FileEntry(path, (output / path).stat().st_size, sha256_of(output / path))
        for path in sorted(paths)
    )
    arbiter = ArbiterEntry(graph=GRAPH, threshold=threshold)
    manifest = replace(manifest, models=replace(manifest.models, arbiter=arbiter), files=files)
    (output / MANIFEST_NAME).write_bytes(to_json(manifest))
    return output
