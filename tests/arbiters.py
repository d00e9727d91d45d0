"""Arbiters for tests: untrained graphs, bundles that hold one, and blocks to score.

Import it from any test (`from arbiters import untrained_graph`): pytest puts tests/ on the path.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from cospec.runtime.arbitration.protocol import Block
from cospec.runtime.bundle.files import sha256_of
from cospec.runtime.bundle.manifest import MANIFEST_NAME, ArbiterEntry, FileEntry, to_json
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.engines.protocol import StepOutput

GRAPH = "arbiter/model.onnx"

TOP = 5
"""Candidates in the rows of `block_of_distributions`."""


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


def rows_of(probabilities: NDArray[np.float64], fed: NDArray[np.int64] | None = None) -> StepOutput:
    """What a graph says about rows [k, V] of probabilities, and about the tokens fed after them."""
    logits = np.log(probabilities) + 3.0  # logits are known up to a constant
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    rank = np.arange(len(logits))
    return StepOutput(
        token=ids[:, 0],
        top_ids=ids,
        top_values=np.take_along_axis(logits, ids, axis=1).astype(np.float32),
        logsumexp=np.full(len(logits), 3.0, dtype=np.float32),
        entropy=-(probabilities * np.log(probabilities)).sum(axis=1).astype(np.float32),
        next_input_logprob=None
        if fed is None
        else np.log(probabilities[rank, fed]).astype(np.float32),
    )


def block_of_distributions(target: NDArray[np.float64], draft: NDArray[np.float64]) -> Block:
    """A block of the draft's likeliest tokens, from both models' rows [k, V] of probabilities."""
    drafted = draft.argmax(axis=1)
    verified = rows_of(target, drafted)
    zeros = np.zeros(len(drafted), dtype=np.float32)
    return Block(
        drafted=drafted,
        matches=verified.token == drafted,
        mismatches=zeros,
        run=zeros,
        position=np.arange(len(drafted), dtype=np.float32),
        draft=rows_of(draft),
        target=verified,
    )
