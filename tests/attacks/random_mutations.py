"""Random damage to a bundle: each must be refused with an error of ours, and quickly.

Bytes of a random file are changed, inserted, removed or moved. A file becomes a link, a pipe or a
folder, or takes another one's place. Values of the manifest are replaced. Nothing is sealed again; that
is what `hostile_bundles` tries.

    cd tests && python -m attacks.random_mutations BUNDLE --count 100000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from cospec.errors import BundleError
from cospec.runtime.bundle.files import sha256_of
from cospec.runtime.bundle.manifest import MANIFEST_NAME, FileEntry, to_json
from cospec.runtime.bundle.reader import Bundle, read_manifest

WEIGHTS = 2048
"""Bytes of weights that are kept: what is not read by a parser is hashed only."""
SECONDS = 2.0
"""Of CPU time, for one damaged bundle."""
VALUES = (None, True, -1, 0, 1 << 63, 1e300, "", "x", "../x", "\ud800", [], [[]], {}, {"a": 1})


def small(bundle: Path, root: Path) -> Path:
    """Copy a bundle with nearly no weights, so that opening it takes a millisecond."""
    shutil.copytree(bundle, root)
    for path in root.rglob("*.data"):
        os.truncate(path, WEIGHTS)
    manifest = read_manifest(root)
    files = [
        FileEntry(entry.path, (root / entry.path).stat().st_size, sha256_of(root / entry.path))
        for entry in manifest.files
    ]
    (root / MANIFEST_NAME).write_bytes(to_json(structs.replace(manifest, files=tuple(files))))
    return root


def _set_byte(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] = draw.randrange(256)


def _flip_bit(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) + 1)
    data[at:at] = draw.randbytes(draw.choice([1, 1, 7, 100]))


def _remove(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    del data[at : at + draw.choice([1, 1, 7, 100])]


def _truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _append(data: bytearray, draw: random.Random) -> None:
    data += draw.choice([b" ", b"\n", b"\0", bytes(data), draw.randbytes(100)])


def _move(data: bytearray, draw: random.Random) -> None:
    at, to = draw.randrange(len(data)), draw.randrange(len(data))
    piece = data[at : at + draw.randint(1, 64)]
    data[to : to + len(piece)] = piece


BYTES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "a byte set": _set_byte,
    "a bit flipped": _flip_bit,
    "bytes inserted": _insert,
    "bytes removed": _remove,
    "cut off": _truncate,
    "appended": _append,
    "bytes moved": _move,
}
PLACES = ("removed", "a link", "a folder", "a pipe", "another file")


def change_value(data: bytes, draw: random.Random) -> bytes:
    """Replace, remove or add a value anywhere in a JSON object; the seal stays as it was."""
    raw: Any = json.loads(data)
    node = raw
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if not (isinstance(inner, (dict, list)) and inner and draw.random() < 0.8):
            break
        node = inner
    how = draw.randrange(4)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[draw.choice(["", "x", "seal", "\ud800", "files"])] = draw.choice(VALUES)
    elif how == 2 and isinstance(inner, int):
        node[key] = inner + draw.choice([-1, 1, 1 << 40])
    else:
        node[key] = draw.choice(VALUES)
    return (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()


def damage(root: Path, files: dict[str, bytes], draw: random.Random) -> tuple[str, str]:
    """Damage one file of a bundle; return what was done, and the path of the file."""
    relative = MANIFEST_NAME if draw.random() < 0.3 else draw.choice(list(files))
    path, before = root / relative, files[relative]
    kind = draw.choice([*BYTES] * 3 + [*PLACES] + ["a value"] * 10)
    if kind == "a value":
        relative = MANIFEST_NAME
        (root / relative).write_bytes(change_value(files[relative], draw))
    elif kind in BYTES:
        data = bytearray(before)
        while data == before:
            BYTES[kind](data, draw)
        path.write_bytes(data)
    else:
        path.unlink()
        if kind == "a link":
            elsewhere = root.with_name("elsewhere")
            elsewhere.write_bytes(before)
            path.symlink_to(elsewhere)
        elif kind == "a folder":
            path.mkdir()
        elif kind == "a pipe":
            os.mkfifo(path)
        elif kind == "another file":
            path.write_bytes(files[draw.choice([name for name in files if name != relative])])
    return kind, relative


def restore(root: Path, relative: str, data: bytes) -> None:
    """Put a file back."""
    path = root / relative
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(data)


def outcome(root: Path) -> str:
    """Open a damaged bundle; return `refused`, or what must never be."""
    started = time.process_time()
    try:
        Bundle.open(root)
    except BundleError:
        return "refused" if time.process_time() - started < SECONDS else "slow"
    except BaseException as error:  # whatever it is, it is counted
        return f"untyped: {type(error).__name__}: {error}"
    return "accepted"


def campaign(bundle: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """Count (what was done, outcome) of so many damaged bundles, each with a seed of its own."""
    found: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = small(bundle, Path(folder, "bundle"))
        files = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        Bundle.open(root)
        for turn in range(seed, seed + count):
            kind, relative = damage(root, files, random.Random(turn))
            done = outcome(root)
            if done == "accepted" and (root / relative).read_bytes() == files[relative]:
                done = "unchanged"  # a value was replaced by itself
            found[kind, done] += 1
            if done not in ("refused", "unchanged"):
                print(f"seed {turn}: {relative}, {kind}: {done}", flush=True)
            restore(root, relative, files[relative])
        Bundle.open(root)
    return found


def main() -> int:
    """Run the campaign and print a table; return 1 if a damaged bundle was not refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    found = campaign(given.bundle, given.count, given.seed)
    for (kind, done), count in sorted(found.items()):
        print(f"{count:>8} {kind:<16} {done}")
    tried = sum(count for (_, done), count in found.items() if done != "unchanged")
    failed = tried - sum(count for (_, done), count in found.items() if done == "refused")
    print(f"tried {tried}, failed {failed}, {time.monotonic() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
