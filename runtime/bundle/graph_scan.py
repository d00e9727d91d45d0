"""What no ONNX graph may hold, found without a parser: foreign files, and loops in an arbiter.

A tensor outside of the graph names its file in an entry of `external_data` whose key is `location`. Our
exporter, as every other, writes that entry in one form. Any other place where these eight letters are a
text of their own could hide a path from us and show it to a parser, so such a graph is refused.

A decoder may loop, since its passes can be interrupted; the arbiter's calls cannot.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import BundleError
from .manifest import Manifest

# Field 13 of TensorProto: a message of a key (field 1, 8 bytes) and a value (field 2).
_KEY = b"\x0a\x08location\x12"
# Eight as a length: in one byte, or padded, which a parser reads alike.
_ANY_KEY = re.compile(rb"(?:\x08|\x88\x80*\x00)location")
# The names of the operators that run a subgraph again and again.
_LOOP = re.compile(rb"(?:\x04|\x84\x80*\x00)(?:Loop|Scan)|(?:\x0b|\x8b\x80*\x00)SequenceMap")
_ENTRY = re.compile(rb"\x6a([\x00-\x7f])" + re.escape(_KEY) + rb"([\x00-\x7f])")


def scan_graphs(root: Path, manifest: Manifest) -> None:
    """Refuse a bundle with a graph that reads a file which is not listed, or an arbiter with a loop.

    Raises:
        BundleError: names the graph.
    """
    listed = {entry.path for entry in manifest.files}
    models = manifest.models
    for model in (models.target, models.draft, models.arbiter):
        if model is None or not (root / model.graph).stat().st_size:
            continue  # an empty file is no graph, and its engine refuses it
        path, folder = root / model.graph, model.graph.rpartition("/")[0]
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if model is models.arbiter and _LOOP.search(data):
                raise BundleError(f"{path} has a loop, as no arbiter has", hint=_NOT_OURS)
            for name in _locations(data):
                inside = name is not None and (f"{folder}/{name}" if folder else name) in listed
                if not inside:
                    what = "data in an unknown way" if name is None else f"the file {name!a}"
                    problem = f"{path} refers to {what}, which is not among the bundle's files"
                    raise BundleError(problem, hint=_NOT_OURS)


_NOT_OURS = "cospec did not export it: take the bundle from somebody you trust"


def _locations(data: mmap.mmap) -> Iterator[str | None]:
    """Yield the files that a graph refers to; None for a reference that cannot be read."""
    for found in _ANY_KEY.finditer(data):
        # In its one form the letters are preceded by the length, and 3 bytes of the entry.
        entry = _ENTRY.match(data, max(found.start() - 3, 0))
        name = None
        if entry is not None:
            size, length = entry[1][0], entry[2][0]
            if size == len(_KEY) + 1 + length:
                name = data[entry.end() : entry.end() + length].decode("utf-8", "replace")
        yield name
