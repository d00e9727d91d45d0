"""A whole bundle in other weight formats: a new sealed bundle beside the source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ...errors import UsageError
from ...runtime.bundle.certificate import (
    CERTIFICATE,
    read_certificate,
    still_true,
    write_certificate,
)
from ...runtime.bundle.manifest import Manifest, ModelEntry, WeightFormat
from ...runtime.bundle.reader import Bundle, find_bundle
from ...runtime.bundle.writer import BundleWriter
from .formats import INT8_ACTIVATIONS
from .graph_conversion import DATA_SUFFIX, convert, copy_graph

SECTION = "weights"
"""The certificate's key for what is told of weight formats."""


def convert_bundle(
    bundle: Path,
    output: Path,
    target_format: WeightFormat,
    draft_format: WeightFormat,
    *,
    force: bool = False,
    reduce_range: bool | None = None,
) -> Path:
    """Write the bundle at `output` that is the one at `bundle` in other weight formats.

    The arbiter goes along, without its certificate unless no file that it was measured on changed.
    Engines for TensorRT do not.

    Args:
        bundle: folder of an fp32 bundle for ONNX Runtime.
        output: the new bundle's folder.
        target_format: of the target's weights.
        draft_format: of the draft's; means nothing where there is none.
        force: replace a bundle that is at `output`.
        reduce_range: see `graph.convert`.

    Raises:
        BundleError: no bundle, or a damaged one.
        UsageError: the bundle is for TensorRT, was converted already, or is not fp32; or `output` is
            the bundle itself.
        ResourceError: no room, no permission, or a bundle is there already.
    """
    source = open_source(bundle, output)
    with BundleWriter(output, force=force) as writer:
        return write_converted(
            source, writer, target_format, draft_format, reduce_range=reduce_range
        )


def open_source(bundle: Path, output: Path, *, quantised: bool = False) -> Bundle:
    """Open the bundle that is to be rewritten; errors as in `convert_bundle`.

    Args:
        bundle: folder of the bundle.
        output: the new bundle's folder.
        quantised: accept the quantised weights of a checkpoint too.
    """
    source = Bundle.open(find_bundle(bundle))
    manifest = source.manifest
    if manifest.engines is not None:
        raise UsageError(
            f"{source.root} was exported for TensorRT, which builds its own engines from fp16 or fp32",
            hint="convert a bundle for ONNX Runtime: export without --trt",
        )
    for role, entry in decoders(manifest).items():
        if entry.kept_weights and not quantised:
            raise UsageError(
                f"the {role} of {source.root} keeps the quantised weights of its checkpoint",
                hint="export it with --weights fp32, and convert that bundle",
            )
        if entry.weights not in (None, "fp32"):
            raise UsageError(
                f"the {role} of {source.root} was converted to {entry.weights} already",
                hint="convert the fp32 bundle that it was made from",
            )
    if manifest.precision != "fp32":
        raise UsageError(
            f"{source.root} is in {manifest.precision}, and only fp32 bundles are converted",
            hint="export the bundle with --precision fp32",
        )
    if output.resolve() == source.root:
        raise UsageError(
            "the output is the bundle that is converted",
            hint="choose another --output: the fp32 bundle stays the reference",
        )
    return source


def write_converted(
    source: Bundle,
    writer: BundleWriter,
    target_format: WeightFormat,
    draft_format: WeightFormat,
    *,
    facts: dict[str, Any] | None = None,
    reduce_range: bool | None = None,
    graph_of: Callable[[str, WeightFormat], Path] | None = None,
    before_commit: Callable[[], object] = lambda: None,
) -> Path:
    """Convert `source` into the bundle that `writer` is open for, and commit it.

    Args:
        source: see `open_source`.
        writer: entered.
        target_format: of the target's weights.
        draft_format: of the draft's.
        facts: what the certificate is to say beside the formats.
        reduce_range: see `graph.convert`.
        graph_of: where each role's graph lies in each format, where that is known already.
        before_commit: called when the graphs are written.
    """
    manifest = source.manifest
    formats = {"target": target_format, "draft": draft_format}
    entries, narrowed = {}, False
    for role, entry in decoders(manifest).items():
        weights = formats[role]
        graph = writer.path(entry.graph)
        if graph_of is None:
            done = convert(source.path(entry.graph), graph, weights, reduce_range=reduce_range)
            narrowed |= done.reduce_range
        else:
            copy_graph(graph_of(role, weights), graph)
            narrowed |= weights in INT8_ACTIVATIONS and bool(reduce_range)
        entries[role] = replace(entry, weights=None if weights == "fp32" else weights)
    about = {
        "source": manifest.seal,
        **{role: formats[role] for role in entries},
        "reduced_range": narrowed,
        **(facts or {}),
    }
    changed = {role for role, entry in entries.items() if entry.weights}
    before_commit()
    return commit_rewritten(source, writer, entries, changed, {SECTION: about})


def commit_rewritten(
    source: Bundle,
    writer: BundleWriter,
    entries: dict[str, ModelEntry],
    changed: Collection[str],
    sections: dict[str, Any],
) -> Path:
    """Commit the bundle of rewritten graphs with what else the source holds, and what is still true.

    Args:
        source: what the graphs were made from.
        writer: entered; the graphs of all decoders are written.
        entries: of the decoders by role.
        changed: roles whose graph is another than the source's.
        sections: what the certificate is to say, by key.
    """
    manifest = source.manifest
    graphs = {entry.graph for entry in entries.values()}
    graphs |= {f"{graph}{DATA_SUFFIX}" for graph in graphs}
    for file in manifest.files:
        if file.path not in (*graphs, CERTIFICATE):
            shutil.copyfile(source.path(file.path), writer.path(file.path))
    facts = still_true(read_certificate(source.root, manifest), changed, writer.sha256_of)
    write_certificate(writer.staging, facts | sections)
    timed = {  # other graphs take other times
        role: replace(entry, pass_seconds=()) if role in changed else entry
        for role, entry in entries.items()
    }
    models = replace(manifest.models, target=timed["target"], draft=timed.get("draft"))
    return writer.commit(
        replace(
            manifest,
            name=writer.destination.name,
            models=models,
            certificate=CERTIFICATE,
            files=(),
        )
    )


def decoders(manifest: Manifest) -> dict[str, ModelEntry]:
    """Return the entries of target and, if there is one, draft, by role."""
    models = manifest.models
    return {"target": models.target, **({} if models.draft is None else {"draft": models.draft})}
