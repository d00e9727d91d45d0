"""Find, check and open a bundle: sizes and hashes before any parser sees a byte of a model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ...errors import BundleError
from .files import Stamp, byte_progress, hash_files, list_files, look_at, stamp_of
from .graph_scan import scan_graphs
from .manifest import (
    ENGINES_FOLDER,
    EXPORT_OR_COPY_AGAIN,
    LOCK_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    from_json,
)
from .verified import is_verified, remember

Made = TypeVar("Made")


@dataclass(frozen=True)
class FileReport:
    """The expected and the actual state of a listed file; `problem` is None if they agree."""

    path: str
    problem: str | None
    expected_size: int
    actual_size: int | None
    expected_sha256: str
    actual_sha256: str | None

    @property
    def ok(self) -> bool:
        """Whether the checks found no problem."""
        return self.problem is None


@dataclass(frozen=True)
class Bundle:
    """An exported pair of models on disk, checked; make one with `Bundle.open`.

    Attributes:
        root: its folder.
        manifest: its contents.
        stamps: of each file, when it was checked.
    """

    root: Path
    manifest: Manifest
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, progress: bool | None = None) -> Bundle:
        """Open the bundle at `path` after checking its manifest, all sizes, then all hashes.

        Then no graph refers to a file that is not listed.

        The files are checked once, here; see `load_unchanged` for a bundle that may be replaced before
        an engine has read it. A large bundle that was hashed before, in this very state, is not hashed
        again; see `verified.py`.

        Args:
            path: the bundle's folder (see `find_bundle` for a folder of bundles).
            verify: False skips the hashes (never the sizes), for applications that verified the
                bundle when they installed it.
            progress: show a bar while hashing; None for "on a terminal, when it takes a while".

        Raises:
            BundleError: the first file that is missing, damaged or not allowed.
        """
        root = Path(path).resolve()
        manifest = read_manifest(root)
        stamps: dict[str, Stamp] = {}
        for report, stamp in (_check_size(root, entry) for entry in manifest.files):
            _raise_if_bad(root, report)
            stamps[report.path] = stamp
        if verify and not is_verified(root, manifest.seal, stamps):
            for report, stamp in _check_files(root, manifest, progress):
                _raise_if_bad(root, report)
                stamps[report.path] = stamp
            remember(root, manifest.seal, stamps)
        scan_graphs(root, manifest)
        return cls(root, manifest, stamps)

    def ensure_unchanged(self) -> None:
        """Refuse a bundle of which a file is not the one that was checked.

        Raises:
            BundleError: names the file.
        """
        for relative, stamp in self.stamps.items():
            if look_at(self.root, relative, in_hub_cache=True) != (None, stamp):
                raise BundleError(
                    f"{self.root / relative} changed while the bundle was being loaded",
                    hint="Load it again when nothing writes to the bundle any more.",
                )

    def path(self, relative: str) -> Path:
        """Return the path of a file of the manifest, such as `target/model.onnx`.

        Raises:
            BundleError: the manifest does not list it, so it was not checked.
        """
        if all(entry.path != relative for entry in self.manifest.files):
            raise BundleError(
                f"{self.root}: '{relative}' is not a file of this bundle",
                hint=f"{shlex.join(['cospec-inspect', str(self.root)])} lists its files.",
            )
        return self.root / relative


def load_unchanged(
    path: str | Path, make: Callable[[Bundle], Made], *, verify: bool = True
) -> Made:
    """Open a bundle and load it, so that what was checked is what was loaded.

    Files are opened by their names after they were checked. A bundle that gets replaced in between is
    loaded again from the start.

    Args:
        path: a bundle's folder, or a folder that holds exactly one bundle.
        make: loads everything that it needs of the bundle before it returns.
        verify: see `Bundle.open`.

    Raises:
        BundleError: no bundle, a damaged one, or one that was replaced in each of several tries.
    """
    for _ in range(LOAD_TRIES):
        before = _state_of(path)
        try:
            bundle = Bundle.open(find_bundle(path), verify=verify)
            made = make(bundle)
            bundle.ensure_unchanged()
            return made
        except Exception:
            if _state_of(path) == before:
                raise
    raise BundleError(
        f"{path}: the bundle was replaced again and again while it was being loaded",
        hint="Load it again when no export or calibration writes to it any more.",
    )


LOAD_TRIES = 5


def _state_of(path: str | Path) -> Stamp | None:
    """Return the stamp of the manifest, which is another one after a bundle was replaced."""
    try:
        return stamp_of((find_bundle(path) / MANIFEST_NAME).stat())
    except (OSError, BundleError):
        return None


def find_bundle(path: str | Path) -> Path:
    """Return the bundle that `path` is, or the only one among the folders directly below it.

    Hidden folders do not count: they are exports under way or interrupted.

    Raises:
        BundleError: there is none, or more than one.
    """
    folder = Path(path)
    if folder.name == MANIFEST_NAME and _has_manifest(folder.parent):
        return folder.parent
    if _has_manifest(folder):
        return folder
    try:
        below = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BundleError(
            f"{folder}: cannot be read as a folder ({error.strerror})",
            hint="Give the folder of a bundle, or a folder that holds one.",
        ) from None
    found = [entry for entry in below if _has_manifest(entry)]
    if not found:
        raise BundleError(
            f"{folder}: no bundle here or one level below (no {MANIFEST_NAME})",
            hint=_interrupted_export(folder) or "Make one with: cospec-export --target tiny",
        )
    if len(found) > 1:
        raise BundleError(
            f"{folder}: holds {len(found)} bundles: {', '.join(entry.name for entry in found)}",
            hint=f"Name one of them, for example {found[0]}",
        )
    return found[0]


def read_manifest(root: Path) -> Manifest:
    """Read and check `root/cospec.json`, and no other file.

    Raises:
        BundleError: it is missing, not a regular file, too large, damaged or newer than this code.
    """
    problem, _ = look_at(root, MANIFEST_NAME, in_hub_cache=True)
    if problem is not None:
        raise BundleError(f"{root / MANIFEST_NAME} {problem}", hint=EXPORT_OR_COPY_AGAIN)
    try:
        with (root / MANIFEST_NAME).open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{root / MANIFEST_NAME} cannot be read ({error.strerror})",
            hint="Check the file's permissions and the disk.",
        ) from None
    try:
        return from_json(data)
    except BundleError as error:
        raise BundleError(f"{root}: {error.message}", hint=error.hint) from None


def check_files(
    root: Path, manifest: Manifest, *, progress: bool | None = None
) -> list[FileReport]:
    """Compare every listed file with the disk; differences are reported, not raised.

    Args:
        root: the bundle's folder.
        manifest: of the bundle.
        progress: show a bar while hashing; None for "on a terminal, when it takes a while".
    """
    return [report for report, _ in _check_files(root, manifest, progress)]


_NO_STAMP: Stamp = (0, 0, 0, 0, 0)


def _check_size(root: Path, entry: FileEntry) -> tuple[FileReport, Stamp]:
    problem, stamp = look_at(root, entry.path, in_hub_cache=True)
    size = None if stamp is None else stamp[2]
    if problem is None and size != entry.size:
        problem = f"has {size} bytes, but {entry.size} were written"
    report = FileReport(entry.path, problem, entry.size, size, entry.sha256, None)
    return report, stamp or _NO_STAMP


def _check_files(
    root: Path, manifest: Manifest, show: bool | None
) -> Iterator[tuple[FileReport, Stamp]]:
    """Yield a report and the stamp of what was hashed, for each file in the manifest's order."""
    checked = [_check_size(root, entry) for entry in manifest.files]
    sizes = {report.path: report.expected_size for report, _ in checked if report.ok}
    with byte_progress(sum(sizes.values()), "verifying", show=show) as progress:
        hashed = hash_files(root, sizes, progress)
    for report, stamp in checked:
        found = hashed.get(report.path)
        if found is None:
            yield report, stamp
        elif isinstance(found, OSError):
            yield replace(report, problem=f"cannot be read ({found.strerror})"), stamp
        else:
            wrong = None if found[0] == report.expected_sha256 else _OTHER_CONTENTS
            yield replace(report, problem=wrong, actual_sha256=found[0]), found[1]


_OTHER_CONTENTS = "has other contents than were written (SHA-256 differs)"


def unlisted_files(root: Path, manifest: Manifest) -> list[str]:
    """Return the files in the folder that the manifest does not list; nothing reads them.

    Derived engines and their lock do not count: they are not part of the bundle.
    """
    known = {MANIFEST_NAME, LOCK_NAME, *(entry.path for entry in manifest.files)}
    return [
        path
        for path in list_files(root)
        if path not in known and path.split("/")[0] != ENGINES_FOLDER
    ]


def _raise_if_bad(root: Path, report: FileReport) -> None:
    if report.problem is None:
        return
    hint = EXPORT_OR_COPY_AGAIN
    if "symbolic link" in report.problem:
        hint = "Copy the bundle with its links resolved: cp -rL FROM TO"
    elif root.parent.name == "snapshots":
        repository = "/".join(root.parent.parent.name.split("--")[1:])
        hint = f"Run `hf cache rm model/{repository}`, and download it again."
    raise BundleError(f"{root / report.path} {report.problem}", hint=hint)


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_NAME).is_file()
    except OSError:  # a folder that may not be entered
        return False


def _interrupted_export(folder: Path) -> str | None:
    """Return a hint if a kill between two renames left a bundle with its backup name only."""
    try:
        backups = sorted(path.name for path in folder.glob(".*.old-*"))
    except OSError:
        return None
    if not backups:
        return None
    return (
        f"An export was interrupted; the next cospec-export to the same place restores {backups[0]}"
    )
