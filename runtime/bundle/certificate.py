"""A bundle's certificate, `certificate.json`: what was measured of it, and of which files that is true.

| section | says |
|---|---|
| `environment` | versions of the packages that exported the bundle |
| `provenance` | by role: name, hub id and licence of the checkpoint |
| `parity` | by role: how far the graph was from its checkpoint |
| `engines` | by role: what TensorRT made of the graph |
| `quality` | what the arbiter is worth; `measured_on` has the hashes of the files it depends on |
| `quantised` | by role: what quantising the weights costs |
| `weights` | the weight formats that were tried, and what they cost |
| `draft_vocabulary` | how the draft was trimmed after the export |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ...errors import BundleError
from .durable import write_json
from .json_input import read_json
from .manifest import EXPORT_OR_COPY_AGAIN, Manifest

CERTIFICATE = "certificate.json"
MAX_CERTIFICATE_BYTES = 16 << 20

Hash = Callable[[str], "str | None"]
"""Returns the SHA-256 of a file of a bundle by its path, None where the bundle has no such file."""


def read_certificate(root: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the certificate of the bundle at `root`, empty if it has none.

    Raises:
        BundleError: it is not a JSON object.
    """
    if manifest.certificate is None:
        return {}
    return read_json(
        root / manifest.certificate,
        dict[str, Any],
        max_bytes=MAX_CERTIFICATE_BYTES,
        error=BundleError,
        hint=EXPORT_OR_COPY_AGAIN,
    )


def write_certificate(root: Path, facts: Mapping[str, Any]) -> None:
    """Write the certificate of a bundle that is being written in the folder `root`."""
    write_json(root / CERTIFICATE, facts)


def measured_speed(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the tokens per second that a certificate records, by mode; empty if it records none.

    They are those of `quality`, or else of the weight formats that were chosen.
    """
    quality, weights = facts.get("quality"), facts.get("weights")
    modes = quality.get("modes") if isinstance(quality, dict) else None
    found = {
        mode: each.get("tokens_per_second")
        for mode, each in (modes if isinstance(modes, dict) else {}).items()
        if mode in ("target", "strict", "collab") and isinstance(each, dict)
    }
    timed = weights.get("speed") if isinstance(weights, dict) else None
    if not found and isinstance(timed, list) and timed and isinstance(timed[0], dict):
        best = timed[0]  # the fastest, which was written
        found["target"] = best.get("target_only_tokens_per_second")
        found["strict"] = best.get("tokens_per_second")
    return {mode: rate for mode, rate in found.items() if isinstance(rate, float) and rate > 0}


def hashes_of(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of every file of a bundle by its path."""
    return {entry.path: entry.sha256 for entry in manifest.files}


def quality_on(quality: Any, sha256_of: Hash) -> dict[str, Any] | None:
    """Return the section `quality` if it was measured on the very files of a bundle, else None."""
    measured = _measured_on(quality)
    same = measured and all(sha256_of(path) == sha256 for path, sha256 in measured.items())
    return quality if same else None


def still_true(facts: dict[str, Any], changed: Collection[str], sha256_of: Hash) -> dict[str, Any]:
    """Return what of a certificate holds after the graphs of some roles were rewritten.

    Args:
        facts: of the bundle that was rewritten.
        changed: roles whose graph is another one now.
        sha256_of: of the bundle that was written.
    """
    parity = facts.get("parity") or {}
    kept = {**facts, "parity": {role: parity[role] for role in parity if role not in changed}}
    if kept.get("quality") is not None:
        kept["quality"] = quality_on(kept["quality"], sha256_of)
    return kept


def is_certified(root: Path, manifest: Manifest) -> bool:
    """Say whether the certificate of a bundle, its hash already checked, measures its arbiter.

    Raises:
        BundleError: it is not a JSON object, or is about other files than the bundle's.
    """
    measured = _measured_on(read_certificate(root, manifest).get("quality"))
    hashes = hashes_of(manifest)
    other = sorted(path for path, sha256 in measured.items() if hashes.get(path) != sha256)
    if other:
        raise BundleError(
            f"{root / CERTIFICATE} was measured on another {other[0]} than this bundle's",
            hint="Measure the arbiter again with cospec-calibrate certify, or use --mode strict.",
        )
    return bool(measured)


def _measured_on(quality: Any) -> dict[str, str]:
    """Return the hashes of the files that figures were measured on; empty where nothing says which."""
    measured = quality.get("measured_on") if isinstance(quality, dict) else None
    return measured if isinstance(measured, dict) else {}
