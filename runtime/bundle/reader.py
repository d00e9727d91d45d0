"""Find, check and open a bundle: sizes and hashes before any parser sees a byte of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import BundleError
from .files import byte_progress, list_files, problem_with_path, sha256_of
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


@dataclass(frozen=True)
class FileReport:
    """What one listed file should be and what it is; `problem` is None where they agree."""

    path: str
    problem: str | None
    expected_size: int
    actual_size: int | None
    expected_sha256: str
    actual_sha256: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the file, as far as it was checked."""
        return self.problem is None


@dataclass(frozen=True)
class Bundle:
    """An exported pair of models on disk, checked; make one with `Bundle.open`.

    A graph's external data (`model.onnx.data`) is read by ONNX Runtime from the graph's own folder.
    Nothing here parses a graph to see where it points: its hash says that our exporter wrote it.
    """

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, progress: bool | None = None) -> Bundle:
        """Open the bundle at `path` after checking its manifest, then all sizes, then all hashes.

        The files are checked once, here: whoever can write to the folder can still change them
        before an engine reads them. Keep a bundle where only trusted users write.

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
        for entry in manifest.files:
            _raise_if_bad(root, check_file(root, entry, hashing=False))
        if verify:
            total = sum(entry.size for entry in manifest.files)
            with byte_progress(total, "verifying", show=progress) as advance:
                for entry in manifest.files:
                    _raise_if_bad(root, check_file(root, entry, advance=advance))
        return cls(root, manifest)

    def path(self, relative: str) -> Path:
        """Where a file of the manifest lies, such as `target/model.onnx`.

        Raises:
            BundleError: the manifest does not list it, so it was not checked.
        """
        if all(entry.path != relative for entry in self.manifest.files):
            raise BundleError(
                f"{self.root}: '{relative}' is not a file of this bundle",
                hint=f"cospec-inspect {self.root} lists its files.",
            )
        return self.root / relative


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
    problem, _ = problem_with_path(root, MANIFEST_NAME)
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


def check_file(
    root: Path,
    entry: FileEntry,
    *,
    hashing: bool = True,
    advance: Callable[[int], object] = lambda count: None,
) -> FileReport:
    """Compare one listed file with what is on disk; never raises for what it finds there."""
    sha256 = None
    problem, size = problem_with_path(root, entry.path)
    if problem is None and size != entry.size:
        problem = f"has {size} bytes, but {entry.size} were written"
    if problem is None and hashing:
        try:
            sha256 = sha256_of(root / entry.path, advance)
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        else:
            if sha256 != entry.sha256:
                problem = "has other contents than were written (SHA-256 differs)"
    return FileReport(entry.path, problem, entry.size, size, entry.sha256, sha256)


def unlisted_files(root: Path, manifest: Manifest) -> list[str]:
    """Files in the folder that the manifest does not know; nothing ever reads them.

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
    raise BundleError(f"{root / report.path} {report.problem}", hint=hint)


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_NAME).is_file()
    except OSError:  # a folder that may not be entered
        return False


def _interrupted_export(folder: Path) -> str | None:
    """Return a hint where a kill between two renames left a bundle under its backup name only."""
    try:
        backups = sorted(path.name for path in folder.glob(".*.old-*"))
    except OSError:
        return None
    if not backups:
        return None
    return (
        f"An export was interrupted; the next cospec-export to the same place restores {backups[0]}"
    )
