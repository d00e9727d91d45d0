"""Built engines on disk: `engines/<flavour>-<version>-sm<SM>/<role>.plan` inside a bundle.

A plan is executable code. It is loaded only if it was built from the same graph, by the same TensorRT,
for the same SM and profiles, and if it has the hash that was recorded with it. Otherwise it is built
again. That protects against accidents and mix-ups only: keep a bundle where only trusted users write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import Struct

from ...errors import BundleError, ResourceError
from ..bundle.durable import write_error, write_json, write_whole
from ..bundle.files import look_at, sha256_of
from ..bundle.json_input import read_json
from ..bundle.manifest import ENGINES_FOLDER, FileEntry, Manifest
from .api import Flavour
from .builder import WORKSPACE_BYTES
from .profiles import Profile

MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True)
class PlanKey:
    """What a plan was built from, and for what; plans with equal keys are interchangeable.

    Attributes:
        graph_sha256: of the graph and its external data; see `graph_sha256`.
        flavour: which TensorRT.
        version: its full version.
        sm: compute capability, 86 for 8.6.
        flags: other settings of the build: profiles and limits.
    """

    graph_sha256: str
    flavour: Flavour
    version: str
    sm: int
    flags: tuple[str, ...] = ()

    @property
    def folder_name(self) -> str:
        """The folder below `engines/`, such as `rtx-1.7.1.116-sm86`."""
        return f"{self.flavour}-{self.version}-sm{self.sm}"


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON file beside a plan: its key, and the hash of its bytes."""

    key: PlanKey
    plan_sha256: str


@dataclass(frozen=True)
class StoredPlan:
    """A plan in a bundle.

    Attributes:
        folder: its folder below `engines/`, which names TensorRT's version and the SM.
        role: target, draft or arbiter.
        size: in bytes.
        fits: whether it was built from the bundle's graph. TensorRT, SM and hash are compared when
            it is loaded.
    """

    folder: str
    role: str
    size: int
    fits: bool


def graph_sha256(files: Iterable[FileEntry], graph: str) -> str:
    """Return the hash of a graph and the other files of its folder, from their hashes.

    Args:
        files: of the bundle, as its manifest lists them.
        graph: path of the ONNX file inside it, `target/model.onnx`.
    """
    folder = graph.rpartition("/")[0] + "/"
    own = sorted((entry.path, entry.sha256) for entry in files if entry.path.startswith(folder))
    return hashlib.sha256(json.dumps(own).encode("ascii")).hexdigest()


def flags_of(profiles: Sequence[Profile]) -> tuple[str, ...]:
    """Return the settings of a build as the flags of a key."""
    return (*map(str, profiles), f"workspace {WORKSPACE_BYTES}")


class PlanStore:
    """The engines of one bundle.

    Args:
        bundle_root: the bundle's folder.
    """

    def __init__(self, bundle_root: Path) -> None:
        self.root = bundle_root

    def find(self, role: str, key: PlanKey) -> Path | None:
        """Return the plan of `role`, or None unless its key and its hash match."""
        path, expected = self._recorded(role, key)
        try:
            return path if expected is not None and sha256_of(path) == expected else None
        except OSError:
            return None

    def holds(self, role: str, key: PlanKey) -> bool:
        """Whether there is a plan of `key`, without checking its hash; `read` checks it."""
        return self._recorded(role, key)[1] is not None

    def stored(self, manifest: Manifest) -> list[StoredPlan]:
        """Return the plans in the bundle of `manifest`, without hashing them."""
        models, found = manifest.models, []
        for role in models.__struct_fields__:
            model = getattr(models, role)
            if model is None:
                continue
            graph = graph_sha256(manifest.files, model.graph)
            for path in sorted((self.root / ENGINES_FOLDER).glob(f"*/{role}.plan")):
                _, stamp = look_at(self.root, self._relative(path))
                if stamp is not None:
                    record = self._record(path)
                    fits = record is not None and record.key.graph_sha256 == graph
                    found.append(StoredPlan(path.parent.name, role, stamp[2], fits))
        return sorted(found, key=lambda plan: plan.folder)

    def read(self, role: str, key: PlanKey) -> bytes | None:
        """Return the bytes of a plan, hashed after they were read; None as in `find`."""
        path, expected = self._recorded(role, key)
        if expected is None:
            return None
        try:
            plan = path.read_bytes()
        except OSError:
            return None
        return plan if hashlib.sha256(plan).hexdigest() == expected else None

    def save(self, role: str, key: PlanKey, plan: bytes, log: str) -> Path:
        """Write a plan, its log and its key; a kill at any moment leaves no false match.

        Raises:
            ResourceError: the bundle's folder cannot be written, or the disk is full.
        """
        folder = self._folder(key)
        record = {"key": asdict(key), "plan_sha256": hashlib.sha256(plan).hexdigest()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        # Until the new record is written, the old one has another hash: no match.
        write_whole(folder / f"{role}.plan", plan)
        write_whole(folder / f"{role}.log", log.encode("utf-8"))
        write_json(folder / f"{role}.json", record)
        return folder / f"{role}.plan"

    def ensure_writable(self, key: PlanKey) -> None:
        """Check that `save` can write.

        Raises:
            ResourceError: the bundle's folder cannot be written.
        """
        folder = self._folder(key)
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK):
            raise write_error(there, PermissionError(errno.EACCES, "no permission"))

    def timing_cache(self, key: PlanKey) -> bytes:
        """Return the measurements of earlier builds of this TensorRT on this GPU, if any."""
        path = self._folder(key) / _TIMING_CACHE
        if look_at(self.root, self._relative(path))[0] is not None:
            return b""
        return path.read_bytes()

    def save_timing_cache(self, key: PlanKey, cache: bytes) -> None:
        """Keep the measurements of a build. They only save time: failing to write is ignored."""
        with suppress(OSError, ResourceError):
            self._folder(key).mkdir(parents=True, exist_ok=True)
            write_whole(self._folder(key) / _TIMING_CACHE, cache)

    def _folder(self, key: PlanKey) -> Path:
        return self.root / ENGINES_FOLDER / key.folder_name

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _recorded(self, role: str, key: PlanKey) -> tuple[Path, str | None]:
        """Return the path of a plan and the hash that it must have; None without such a plan."""
        path = self._folder(key) / f"{role}.plan"
        record = self._record(path)
        if record is None or record.key != key:
            return path, None
        if look_at(self.root, self._relative(path))[0] is not None:
            return path, None
        return path, record.plan_sha256

    def _record(self, plan: Path) -> Record | None:
        """Return the record beside a plan, None if it cannot be read."""
        path = plan.with_suffix(".json")
        if look_at(self.root, self._relative(path))[0] is not None:
            return None
        try:
            return read_json(path, Record, max_bytes=MAX_KEY_BYTES, error=BundleError)
        except BundleError:
            return None


_TIMING_CACHE = "timing.cache"
