"""A writer that is killed, and what the next one finds."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundles import graph_of, names, write

from cospec.errors import ResourceError
from cospec.runtime.bundle import writer as bundle_writer
from cospec.runtime.bundle.writer import BundleWriter

LINUX = sys.platform.startswith("linux")
# Where the process is killed: a function to wrap, and whether it dies before or after it ran.
KILL_POINTS = {
    "while writing": ("BundleWriter.path", "after"),
    "while hashing": ("hash_files", "after"),
    "before the manifest": ("to_json", "before"),
    "before the flush": ("flush_tree_to_disk", "before"),
    "before the swap": ("flush_tree_to_disk", "after"),
    "after the swap": ("exchange_folders", "after"),
    "after commit": ("BundleWriter.commit", "after"),
}
KILLED_WRITER = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from cospec.runtime.bundle import writer as bundle_writer
from small_bundles import write
destination, target, when, swap = Path(sys.argv[2]), *sys.argv[3:]
if swap == "two renames":
    bundle_writer.exchange_folders = lambda *_: False
*owner, name = target.split(".")
owner = getattr(bundle_writer, owner[0]) if owner else bundle_writer
original = getattr(owner, name)
def deadly(*args, **kwargs):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, deadly)
write(destination, b"new", force=True)
"""


def kill_writer(destination: Path, target: str, when: str, swap: str = "exchange") -> None:
    """Run a writer that dies of SIGKILL at the given point, as in a power cut."""
    folder = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", KILLED_WRITER, folder, str(destination), target, when, swap]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.skipif(not LINUX, reason="exchanging folders and SIGKILL: Linux")
@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_bundle(destination, point):
    write(destination)
    kill_writer(destination, *KILL_POINTS[point])
    assert graph_of(destination) == (b"new" if point.startswith("after") else b"old")
    assert len(names(destination.parent)) == 3, "the kill left a staging folder"
    with BundleWriter(destination, force=True):
        pass  # the next writer cleans up, even one that commits nothing
    assert names(destination.parent) == [".tiny.lock", "tiny"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL: POSIX")
def test_a_kill_during_a_first_export_leaves_nothing_under_the_name(destination):
    kill_writer(destination, "flush_tree_to_disk", "after")
    assert not destination.exists()
    write(destination)
    assert names(destination.parent) == [".tiny.lock", "tiny"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL: POSIX")
@pytest.mark.parametrize("renames", ["one", "both"])
def test_a_kill_around_the_two_renames_is_repaired_by_the_next_writer(destination, renames):
    write(destination)
    if renames == "one":  # Path.rename of the old bundle has run, that of the new one has not
        kill_writer(destination, "Path.rename", "after", "two renames")
        assert not destination.exists()
    else:
        kill_writer(destination, "flush_to_disk", "before", "two renames")
        assert graph_of(destination) == b"new"
    with BundleWriter(destination, force=True):
        pass
    assert graph_of(destination) == (b"old" if renames == "one" else b"new")
    assert names(destination.parent) == [".tiny.lock", "tiny"]


def test_a_failing_second_rename_puts_the_old_bundle_back(destination, monkeypatch):
    write(destination)
    rename = Path.rename

    def fail_for_staging(path: Path, target: Path) -> Path:
        if "staging" in path.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(bundle_writer, "exchange_folders", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail_for_staging)
    with pytest.raises(ResourceError, match="cannot be written"):
        write(destination, b"new", force=True)
    assert graph_of(destination) == b"old"
    assert names(destination.parent) == [".tiny.lock", "tiny"]


def test_leftovers_of_dead_writers_of_other_names_are_cleared(destination):
    parent = destination.parent
    write(parent / "other")
    for left in (".other.staging-1", ".gone.staging-2", ".gone.old-2", ".gone.old-2/target"):
        (parent / left).mkdir()
    (parent / ".gone.lock").touch()
    with BundleWriter(parent / "living") as living:
        write(destination)
        assert living.staging.is_dir(), "its writer lives"
    locks = [".gone.lock", ".living.lock", ".other.lock", ".tiny.lock"]
    assert names(parent) == [*locks, "gone", "other", "tiny"]
    assert names(parent / "gone") == ["target"], "a bundle that had its backup name only"


def test_folders_that_are_no_leftovers_are_not_touched(destination):
    destination.parent.mkdir()
    others = [
        ".tiny2.staging-1",
        ".tiny.staging-x",
        ".xtiny.staging-1",
        ".tiny.staging-1.staging-2",
    ]
    for other in [*others, ".tiny.staging-1"]:
        (destination.parent / other).mkdir()
    write(destination)
    assert names(destination.parent) == sorted([*others, ".tiny.lock", "tiny"])
