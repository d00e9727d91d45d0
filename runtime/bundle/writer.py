"""Write a bundle so that its name always refers to a whole one: the old or the new.

All files go to a hidden staging folder beside the destination. `commit` hashes them, writes the
manifest, flushes everything to the disk and swaps the folders. A kill at any moment leaves either
the old or the new bundle; what else it leaves, the next writer in the same folder clears away.

Beside a destination `models/tiny`:
  models/.tiny.lock            held while a writer lives, and never deleted: a second writer could
                               lock a new file of the same name
  models/.tiny.staging-<pid>   the bundle being written
  models/.tiny.old-<pid>       the old bundle between two renames, where folders cannot be exchanged
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ...errors import MissingExtraError, ResourceError
from .durable import flush_to_disk, flush_tree_to_disk, free_disk, lack_of_room, write_error
from .files import byte_progress, format_bytes, hash_files, list_files, look_at, sha256_of
from .manifest import ENGINES_FOLDER, MANIFEST_NAME, FileEntry, Manifest, to_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class BundleWriter:
    """A context manager that writes one bundle; without `commit` it leaves nothing.

    Args:
        destination: the bundle's folder; its parent is made where it does not exist.
        force: replace a bundle that is there already, together with the engines derived from it.

    Raises (on entering, before anything is computed):
        ResourceError: the place cannot be written, another export is writing it, something that is
            not a bundle is there, or a bundle is and `force` is False.
    """

    def __init__(self, destination: str | Path, *, force: bool = False) -> None:
        # Resolved, so that a link to a bundle is followed rather than replaced.
        self.destination = Path(destination).resolve()
        self.force = force
        self.staging = _beside(self.destination, f"staging-{os.getpid()}")
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> BundleWriter:
        parent = self.destination.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.destination)
            _clear_leftovers(self.destination)
            for other in _others_with_leftovers(self.destination):
                _clear_if_dead(other)
            self._check_destination()
            self.staging.mkdir()
        except BaseException as error:
            self._clear_and_release()
            self._raise_if_about_the_place(error)
            if isinstance(error, OSError):
                raise write_error(parent, error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._raise_if_about_the_place(error)  # names sizes, so before they are freed
        finally:
            self._clear_and_release()

    def path(self, relative: str) -> Path:
        """Return the path to write a file of the bundle to; its folder exists."""
        path = self.staging / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sha256_of(self, relative: str) -> str | None:
        """Return the hash of a file that was written, None if it was not."""
        path = self.staging / relative
        return sha256_of(path) if path.is_file() else None

    def commit(self, manifest: Manifest, *, progress: bool | None = None) -> Path:
        """Seal what was written under `manifest` and give it the destination's name.

        Args:
            manifest: complete but for `files`, which is filled in from the staging folder.
            progress: show a bar while hashing; None for "on a terminal, when it takes a while".

        Returns:
            The destination.

        Raises:
            BundleError: a file that the manifest refers to was not written.
            ResourceError: the disk is full, or the destination was taken meanwhile.
        """
        self._check_destination()
        complete = replace(manifest, files=self._hash_staging(progress))
        (self.staging / MANIFEST_NAME).write_bytes(to_json(complete))
        flush_tree_to_disk(self.staging)
        if not self.destination.exists():
            self.staging.rename(self.destination)
        elif not exchange_folders(self.staging, self.destination):
            # A kill between these two renames leaves no bundle under the name. The next writer
            # puts the old one back; see `_clear_leftovers`.
            self.destination.rename(_beside(self.destination, f"old-{os.getpid()}"))
            self.staging.rename(self.destination)
        flush_to_disk(self.destination.parent)
        return self.destination

    def _hash_staging(self, progress: bool | None) -> tuple[FileEntry, ...]:
        sizes: dict[str, int] = {}
        for relative in list_files(self.staging):
            if relative.split("/")[0] == ENGINES_FOLDER:
                continue  # derived, with hashes of their own
            problem, stamp = look_at(self.staging, relative)
            if stamp is None:
                raise ResourceError(
                    f"{self.staging / relative} {problem}",
                    hint="Export again, and leave the staging folder alone meanwhile.",
                )
            sizes[relative] = stamp[2]
        with byte_progress(sum(sizes.values()), "sealing", show=progress) as advance:
            hashed = hash_files(self.staging, sizes, advance)
        entries = []
        for relative, found in hashed.items():
            if isinstance(found, OSError):
                raise found
            entries.append(FileEntry(relative, sizes[relative], found[0]))
        return tuple(entries)

    def _check_destination(self) -> None:
        if not os.path.lexists(self.destination):
            return
        if not (self.destination / MANIFEST_NAME).is_file():
            if self.destination.is_dir() and not any(self.destination.iterdir()):
                return  # an empty folder holds nothing to lose
            raise ResourceError(
                f"{self.destination}: exists and is not a bundle, so it will not be overwritten",
                hint="Choose another output folder, or move what is there.",
            )
        if not self.force:
            raise ResourceError(
                f"{self.destination}: a bundle is there already",
                hint="Replace it with --force, or choose another output folder.",
            )

    def _clear_and_release(self) -> None:
        if self._lock is not None:
            try:
                _clear_leftovers(self.destination)
            finally:
                self._lock.release()
                self._lock = None

    def _raise_if_about_the_place(self, error: BaseException) -> None:
        """Raise a ResourceError for an operating-system error that is about the destination."""
        if not isinstance(error, OSError):
            return
        parent = self.destination.parent
        full = lack_of_room(error)
        if full is not None:
            files = list_files(self.staging)
            written = sum((self.staging / name).lstat().st_size for name in files)
            raise ResourceError(
                f"{parent}: {full} ({format_bytes(written)} of the bundle were written, "
                f"{format_bytes(free_disk(parent))} are free)",
                hint="Free some space, or choose an output folder on another disk.",
            ) from error
        # Only for our own folders: a checkpoint that cannot be read has its own error.
        ours = str(error.filename).startswith((str(self.staging), str(self.destination)))
        if ours and error.errno in _NOT_WRITABLE:
            raise write_error(parent, error) from error


def _beside(destination: Path, suffix: str) -> Path:
    return destination.with_name(f".{destination.name}.{suffix}")


def acquire_lock(destination: Path) -> BaseFileLock:
    """Return the lock that a writer of `destination` holds while it lives.

    Raises:
        ResourceError: another writer lives.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise MissingExtraError("filelock", "export", "Writing a bundle") from None
    lock = FileLock(_beside(destination, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        processes = [path.suffix.rpartition("-")[2] for path in _leftovers(destination, "staging")]
        who = f" (process {', '.join(processes)})" if processes else ""
        raise ResourceError(
            f"{destination}: another export is writing it{who}",
            hint="Wait until it is done or stop it, or choose another output folder.",
        ) from None
    return lock


def _leftovers(destination: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.{kind}-\d+")
    return [path for path in destination.parent.iterdir() if pattern.fullmatch(path.name)]


def _clear_leftovers(destination: Path) -> None:
    """Put a bundle back that has its backup name only; remove everything else.

    The caller holds the lock, so no other writer lives: all of it is the caller's own or a dead one's.
    """
    for backup in _leftovers(destination, "old"):
        if destination.exists():
            shutil.rmtree(backup, ignore_errors=True)
        else:
            backup.rename(destination)
    for staging in _leftovers(destination, "staging"):
        shutil.rmtree(staging, ignore_errors=True)


def _others_with_leftovers(destination: Path) -> set[Path]:
    """Return the other bundles of a folder that a writer left something of; each has a lock file."""
    pattern = re.compile(r"\.(.+)\.(?:staging|old)-\d+")
    found = (pattern.fullmatch(path.name) for path in destination.parent.iterdir())
    others = {destination.with_name(match[1]) for match in found if match is not None}
    return {other for other in others - {destination} if _beside(other, "lock").is_file()}


def _clear_if_dead(destination: Path) -> None:
    """Clear what a writer of another bundle left, unless it lives."""
    with suppress(ResourceError, OSError):
        lock = acquire_lock(destination)
        try:
            _clear_leftovers(destination)
        finally:
            lock.release()


def exchange_folders(first: Path, second: Path) -> bool:
    """Swap two names in one step, or return False where the system cannot.

    Two renames would leave a moment without either. Linux can do it in one (`renameat2`), which
    Python does not offer; not every file system supports it.
    """
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library older than glibc 2.28 or musl 1.2.6
        return False
    at_cwd, rename_exchange = -100, 2
    if renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))
