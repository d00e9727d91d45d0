"""A record, for each user, of bundles that were hashed before, so that opening one again is quick.

A bundle counts as verified if its seal and the stamp of every file (device, inode, size, times of
change) are those of the last time. This misses damage that the disk does without a write, and
changes by somebody who can set the system's clock or write to the disk's device. `cospec-verify`
always hashes, and with COSPEC_VERIFY=always so do `cospec.load` and every command. The record is as
safe as the user's other files: somebody who can write it can also change the user's programs.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from ...errors import BundleError, ResourceError
from .durable import write_json
from .files import Stamp
from .json_input import read_json

VARIABLE = "COSPEC_VERIFY"
RECORD_FROM_BYTES = 64 << 20
"""Bundles below are hashed each time: that takes milliseconds."""
SETTLED_NS = 2_000_000_000
"""A file that changed more recently is not recorded: it could change again within the same tick of the
file system's clock."""
MAX_BUNDLES = 256
MAX_RECORD_BYTES = 1 << 20


def is_verified(root: Path, seal: str, stamps: Mapping[str, Stamp]) -> bool:
    """Whether the bundle at `root` was hashed in this very state before."""
    if not _applies(stamps):
        return False
    return _read().get(str(root)) == _state(seal, stamps)


def remember(root: Path, seal: str, stamps: Mapping[str, Stamp]) -> None:
    """Record that the bundle at `root` was hashed; does nothing where no record can be written."""
    newest = max((max(stamp[3:]) for stamp in stamps.values()), default=0)
    if not _applies(stamps) or newest > time.time_ns() - SETTLED_NS:
        return
    known = _read()
    known.pop(str(root), None)
    known[str(root)] = _state(seal, stamps)
    path = record_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, dict(list(known.items())[-MAX_BUNDLES:]))
    except (OSError, ResourceError):
        return  # a home that is read-only: the bundle is hashed again the next time


def record_path() -> Path:
    """Return the file that holds the record."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(caches) if Path(caches).is_absolute() else Path("~/.cache").expanduser()
    return folder / "cospec" / "verified.json"


def _applies(stamps: Mapping[str, Stamp]) -> bool:
    large = sum(stamp[2] for stamp in stamps.values()) >= RECORD_FROM_BYTES
    return large and os.name == "posix" and os.environ.get(VARIABLE) != "always"


def _state(seal: str, stamps: Mapping[str, Stamp]) -> str:
    return hashlib.sha256(json.dumps([seal, sorted(stamps.items())]).encode()).hexdigest()


def _read() -> dict[str, str]:
    """Return the record; empty without one, or if others than the user could write it."""
    path = record_path()
    try:
        info = path.stat()
        if info.st_uid != os.getuid() or info.st_mode & 0o022:
            return {}
        return read_json(path, dict[str, str], max_bytes=MAX_RECORD_BYTES, error=BundleError)
    except (OSError, BundleError):
        return {}
