"""Files that may be hostile or half written: paths, hashes, listings."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 4 << 20
PROGRESS_FROM_BYTES = 256 << 20  # below this, hashing is over before a bar can be read


def list_files(root: Path) -> list[str]:
    """POSIX paths, relative to `root` and sorted, of all that is not a folder below it.

    Symbolic links are listed and never followed.
    """
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        found += [Path(folder, name).relative_to(root).as_posix() for name in (*names, *links)]
    return sorted(found)


def problem_with_path(root: Path, relative: str) -> tuple[str | None, int | None]:
    """Return (what is wrong with a file or None, its size in bytes where nothing is wrong).

    A file must be a regular one, and neither it nor a folder between it and `root` a symbolic link.
    """
    current = root
    info = None
    for part in relative.split("/"):
        current = current / part
        try:
            info = current.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return "is missing", None
        except OSError as error:
            return f"cannot be read ({error.strerror})", None
        if stat.S_ISLNK(info.st_mode):
            return f"is reached through a symbolic link ('{current.relative_to(root)}')", None
    if info is None or not stat.S_ISREG(info.st_mode):
        return "is not a regular file", None
    return None, info.st_size


def sha256_of(path: Path, advance: Callable[[int], object] = lambda count: None) -> str:
    """Hexadecimal SHA-256 of a file; `advance` is told the bytes read, chunk by chunk."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()


@contextmanager
def byte_progress(
    total: int, label: str, *, show: bool | None = None
) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with each number of bytes done; draws a bar on stderr if wanted.

    Args:
        total: all the bytes there are to do.
        label: what is being done, shown before the bar.
        show: True or False, or None for a bar where there is much to do and stderr is a terminal.
    """
    if show is False or (show is None and total < PROGRESS_FROM_BYTES):
        yield lambda count: None
        return
    from tqdm import tqdm

    # disable=None is tqdm's own "only on a terminal".
    disable = None if show is None else False
    with tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=disable) as bar:
        yield bar.update


def format_bytes(count: int) -> str:
    """Write a size for people, in binary units: 1536 is '1.5 KiB'."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
