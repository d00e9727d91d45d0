"""Files that may be hostile or half written: paths, hashes, listings."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

CHUNK_BYTES = 4 << 20
MAX_THREADS = 8
PROGRESS_FROM_BYTES = 256 << 20  # below this, hashing is over before a bar can be read


def list_files(root: Path) -> list[str]:
    """Return the POSIX paths below `root`, sorted and relative to it, of all that is not a folder.

    Symbolic links are listed and never followed.
    """
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        found += [Path(folder, name).relative_to(root).as_posix() for name in (*names, *links)]
    return sorted(found)


Stamp = tuple[int, int, int, int, int]
"""Identifies a state of a file: device, inode, size, and the times (ns) of the last change of its
contents and of its inode. The last one cannot be set without setting the system's clock."""


def stamp_of(info: os.stat_result) -> Stamp:
    """Return the stamp of a file from what `stat` says."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def look_at(
    root: Path, relative: str, *, in_hub_cache: bool = False
) -> tuple[str | None, Stamp | None]:
    """Return (what is wrong with a file or None, its stamp where nothing is wrong), without opening it.

    A file must be a regular one, and neither it nor a folder between it and `root` a symbolic link.

    Args:
        root: a folder.
        relative: POSIX path of the file below it.
        in_hub_cache: the file may be such a link as `blob_of` allows; the stamp is then the blob's.
    """
    current = root
    info = None
    for part in relative.split("/"):
        current = current / part
        try:
            info = current.lstat()
            if in_hub_cache and stat.S_ISLNK(info.st_mode):
                blob = blob_of(root, current.relative_to(root).as_posix())
                info = info if blob is None else blob.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return "is missing", None
        except OSError as error:
            return f"cannot be read ({error.strerror})", None
        if stat.S_ISLNK(info.st_mode):
            return f"is reached through a symbolic link ('{current.relative_to(root)}')", None
    if info is None or not stat.S_ISREG(info.st_mode):
        return "is not a regular file", None
    return None, stamp_of(info)


def blob_of(root: Path, relative: str) -> Path | None:
    """Return the file that a link of a snapshot in the hub's cache leads to; None for all else.

    huggingface_hub keeps the files of a repository in `blobs/`, named by their hash, and in
    `snapshots/COMMIT/` a relative link to each. A blob may itself be a link into the `blobs/` that all
    repositories share. Only links of these very forms are followed, so that a bundle in such a folder
    still reads no other file.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    repository = root.parent.parent
    if root.parent.name != "snapshots":
        return None
    up = rf"(?:\.\./){{{relative.count('/') + 2}}}"
    blob = _leads_to(root / relative, up, r"blobs/(?:[0-9a-f]{40}|[0-9a-f]{64})", repository)
    if blob is None:
        return None
    shared = r"blobs/([0-9a-f]{2})/\2[0-9a-f]{62}"
    return _leads_to(blob, r"\.\./\.\./", shared, repository.parent) or blob


def _leads_to(link: Path, up: str, inside: str, folder: Path) -> Path | None:
    """Return where a link leads if its text is `up` and then `inside` (expressions), below `folder`."""
    try:
        found = re.fullmatch(f"{up}({inside})", link.readlink().as_posix())
    except OSError:
        return None
    if found is None:
        return None
    target = folder / found[1]
    has_links = target.parent.resolve() != (folder.resolve() / found[1]).parent
    return None if has_links else target


def hash_file(
    path: Path, progress: Callable[[int], object] = lambda count: None
) -> tuple[str, Stamp]:
    """Return the SHA-256 of a file in hexadecimal, and the stamp that it had before it was read.

    Args:
        path: of the file; a symbolic link or a pipe in its place is not opened.
        progress: called with the number of bytes of each chunk that was read.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    handle = os.open(path, os.O_RDONLY | _CAREFUL)
    with os.fdopen(handle, "rb", 0) as stream:
        stamp = stamp_of(os.fstat(handle))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            progress(count)
    return digest.hexdigest(), stamp


_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def hash_files(
    root: Path,
    sizes: Mapping[str, int],
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, tuple[str, Stamp] | OSError]:
    """Hash files below `root`, several at a time: reading and hashing leave the interpreter free.

    Args:
        root: a folder.
        sizes: of the files in bytes, by path; the largest are begun first.
        progress: called with each number of bytes done, from any thread.

    Returns:
        The result or the error of `hash_file`, by path in the order of `sizes`.
    """
    stopped = Event()

    def step(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        progress(count)

    def hash_one(relative: str) -> tuple[str, Stamp] | OSError:
        try:
            return hash_file(blob_of(root, relative) or root / relative, step)
        except OSError as error:
            return error

    by_size = sorted(sizes, key=lambda relative: -sizes[relative])
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        try:
            found = dict(zip(by_size, pool.map(hash_one, by_size), strict=True))
        except BaseException:
            stopped.set()  # Ctrl-C does not wait for gigabytes
            raise
    return {relative: found[relative] for relative in sizes}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hash_file(path)[0]


@contextmanager
def byte_progress(
    total: int, label: str, *, show: bool | None = None
) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with each number of bytes done, from any thread; draws a bar on stderr.

    Args:
        total: bytes in all.
        label: shown before the bar.
        show: True or False; None draws a bar for large totals if stderr is a terminal.
    """
    if show is False or (show is None and total < PROGRESS_FROM_BYTES):
        yield lambda count: None
        return
    from tqdm import tqdm

    # disable=None is tqdm's own "only on a terminal".
    disable = None if show is None else False
    with tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=disable) as bar:
        lock = Lock()

        def progress(count: int) -> None:
            with lock:
                bar.update(count)

        yield progress


def format_bytes(count: int) -> str:
    """Write a size for people, in binary units: 1536 is '1.5 KiB'."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
