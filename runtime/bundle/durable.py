"""Files written whole: a kill or a full disk at any moment leaves the old file or the new one."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import stat
from pathlib import Path

from ...errors import ResourceError

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",
    errno.EFBIG: "a file would be larger than this process may write (ulimit -f)",
}
_NO_ROOM[errno.ENOSPC] = "the disk is full"  # where EDQUOT is not known
# numpy's `tofile` loses the errno.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


def lack_of_room(error: OSError) -> str | None:
    """Return what is full, if that is what an error says: a disk, a quota, or a limit of file sizes."""
    if error.errno is None and _SHORT_WRITE.search(str(error)):
        return "the disk is full, or a file would be larger than this process may write (ulimit -f)"
    return None if error.errno is None else _NO_ROOM.get(error.errno)


def write_error(path: Path, error: OSError) -> ResourceError:
    """Return the error to raise for a file that could not be written."""
    full = lack_of_room(error)
    if full is not None:
        return ResourceError(
            f"{path}: {full}",
            hint="Free some space, or choose a place on another disk.",
        )
    return ResourceError(
        f"{path}: cannot be written ({error.strerror or error})",
        hint="Choose a place that you may write to.",
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    A symbolic link is followed. Only a regular file is ever replaced. What a killed writer left of the
    same file is removed.

    Raises:
        ResourceError: the disk is full, the folder cannot be written, or `path` is no regular file but
            a folder, a device, a pipe.
    """
    try:
        ensure_replaceable(path)
        path = Path(os.path.realpath(path))
        _clear_parts(path)
        part = path.with_name(f".{path.name}.part-{os.getpid()}")
        try:
            part.write_bytes(data)
            flush_to_disk(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        flush_to_disk(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _clear_parts(path: Path) -> None:
    """Remove what processes that do not live any more left of a file."""
    if os.name != "posix":
        return  # only there can one ask for a process without ending it
    for part in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        number = part.name.rpartition("-")[2]
        if number.isdecimal() and len(number) < _PID_DIGITS and not _lives(int(number)):
            part.unlink(missing_ok=True)


_PID_DIGITS = 10


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON; see `write_whole`."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode("ascii"))


def ensure_replaceable(path: Path) -> None:
    """Refuse a path that is there and no regular file.

    Raises:
        ResourceError: it is a folder, a device, a pipe, a socket.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise ResourceError(
            f"{path}: is not a regular file, so it will not be overwritten",
            hint="Name a file that does not exist, or one that may be replaced.",
        )


def flush_to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk (fsync)."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and writes their entries itself
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree_to_disk(root: Path) -> None:
    """Flush every file and folder below `root`, and `root` last."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            flush_to_disk(Path(folder, name))
        flush_to_disk(Path(folder))


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or that would hold it."""
    existing = path.resolve()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free
