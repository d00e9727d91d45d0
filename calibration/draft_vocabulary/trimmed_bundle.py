"""A whole bundle with a trimmed draft: a new sealed bundle beside the source."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ...errors import UsageError
from ...runtime.bundle.certificate import (
    CERTIFICATE,
    read_certificate,
    still_true,
    write_certificate,
)
from ...runtime.bundle.manifest import ModelEntry
from ...runtime.bundle.reader import Bundle, find_bundle
from ...runtime.bundle.writer import BundleWriter
from .trimmed_head import trim

SECTION = "draft_vocabulary"
"""The certificate's section on a trimmed draft."""


def trim_bundle(
    bundle: Path, output: Path, kept: NDArray[np.int64], *, force: bool = False
) -> Path:
    """Write a copy of the bundle at `bundle` to `output`, with a draft that proposes only `kept`.

    The arbiter is copied without its certificate, because its inputs from the draft have changed: the
    probabilities and the entropy are those of the kept tokens.

    Args:
        bundle: folder of a bundle for ONNX Runtime with a draft, in fp32 or with the quantised weights
            of its checkpoint.
        output: the new bundle's folder.
        kept: int64 [N], ids in ascending order; see `frequency.most_frequent`.
        force: replace a bundle that is at `output`.

    Raises:
        BundleError: no bundle, or a damaged one.
        UsageError: the bundle is for TensorRT, was trimmed already, is in fp16 or has no draft; or
            `output` is the bundle itself.
        ResourceError: no room, no permission, or a bundle is there already.
    """
    source = open_untrimmed(bundle, output)
    with BundleWriter(output, force=force) as writer:
        trim(source.path(draft_of(source).graph), writer.path(draft_of(source).graph), kept)
        return commit_trimmed(source, writer, len(kept), {})


def open_untrimmed(bundle: Path, output: Path) -> Bundle:
    """Open a bundle to trim; errors as in `trim_bundle`."""
    source = Bundle.open(find_bundle(bundle))
    manifest = source.manifest
    if manifest.engines is not None:
        raise UsageError(
            f"{source.root} was exported for TensorRT, which builds its own engines from fp16 or fp32",
            hint="trim a bundle for ONNX Runtime: export without --trt",
        )
    if manifest.precision != "fp32":
        raise UsageError(
            f"{source.root} is in {manifest.precision}, which trimming does not support",
            hint="export the bundle with --precision fp32",
        )
    if output.resolve() == source.root:
        raise UsageError("the output is the bundle that is trimmed", hint="choose another --output")
    if manifest.models.draft is None:
        raise UsageError(
            f"{source.root} has no draft", hint="export the bundle with --draft, and trim that"
        )
    if manifest.models.draft.kept_tokens is not None:
        raise UsageError(
            f"the draft of {source.root} was trimmed already",
            hint="trim the bundle that it was made from",
        )
    return source


def commit_trimmed(source: Bundle, writer: BundleWriter, size: int, facts: dict[str, Any]) -> Path:
    """Write the rest of the bundle whose trimmed draft `writer` holds, and commit it.

    Args:
        source: see `open_untrimmed`.
        writer: entered.
        size: tokens that were kept.
        facts: further entries of the certificate's section.
    """
    manifest, draft = source.manifest, draft_of(source)
    for file in manifest.files:
        if file.path not in (draft.graph, f"{draft.graph}.data", CERTIFICATE):
            shutil.copyfile(source.path(file.path), writer.path(file.path))
    about = {"source": manifest.seal, "kept_tokens": size, **facts}
    true = still_true(read_certificate(source.root, manifest), {"draft"}, writer.sha256_of)
    write_certificate(writer.staging, {**true, SECTION: about})
    # Another graph takes other times.
    models = replace(manifest.models, draft=replace(draft, kept_tokens=size, pass_seconds=()))
    name = writer.destination.name
    return writer.commit(
        replace(manifest, name=name, models=models, certificate=CERTIFICATE, files=())
    )


def draft_of(source: Bundle) -> ModelEntry:
    """Return the draft's entry of a bundle that has one."""
    draft = source.manifest.models.draft
    assert draft is not None, "open_untrimmed refuses these"
    return draft
