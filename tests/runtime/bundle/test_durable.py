"""Files written whole: what is replaced, what never is, and what a full disk leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cospec.errors import ResourceError
from cospec.runtime.bundle.durable import lack_of_room, write_json, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    assert names(tmp_path) == ["file"]


def test_a_symbolic_link_is_followed_and_kept(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    link.symlink_to(target)
    for data in (b"first", b"second"):  # of the target, the first one makes it
        write_whole(link, data)
        assert target.read_bytes() == data
        assert link.is_symlink()
    assert names(tmp_path / "elsewhere") == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="devices and pipes are files on POSIX")
@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to a device", "pipe"])
def test_nothing_but_a_regular_file_is_replaced(tmp_path, request, kind):
    path = tmp_path / "there"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "link to a device":
        path.symlink_to("/dev/full")
    else:
        request.addfinalizer(lambda: [os.close(end) for end in ends])
        ends = os.pipe()
        path = Path(f"/dev/fd/{ends[1]}")
    before, mode = names(tmp_path), path.stat().st_mode
    with pytest.raises(ResourceError, match="is not a regular file") as caught:
        write_whole(path, b"data")
    assert "Name a file" in caught.value.hint
    assert (names(tmp_path), path.stat().st_mode) == (before, mode)


@pytest.mark.parametrize("place", ["missing/file", "file/below"])
def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        write_whole(tmp_path / place, b"data")
    assert str(tmp_path / place) in caught.value.message
    assert names(tmp_path) == ["file"]


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from cospec.runtime.bundle.durable import ResourceError, lack_of_room, write_whole
try:
    write_whole(Path(sys.argv[1]), bytes(2000))
except ResourceError as error:
    print(error.message, "|", error.exit_code)
import numpy
try:
    numpy.zeros(100_000, numpy.uint8).tofile(sys.argv[1] + ".other")
except OSError as error:
    print(error.errno, lack_of_room(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as Linux has it")
def test_a_limit_of_the_file_size_is_a_full_disk_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{path}: a file would be larger than this process may write")
    assert first.endswith("| 7")
    assert second.startswith("None the disk is full, or a file would be"), "numpy gives no errno"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file", "file.other"]


def test_a_real_full_disk_is_recognised_with_and_without_numpy():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.raises(OSError) as plain:
        full.write_bytes(b"x")
    assert lack_of_room(plain.value) == "the disk is full"
    with pytest.raises(OSError) as of_numpy, full.open("wb") as stream:
        np.zeros(1 << 20, np.uint8).tofile(stream)
    assert "the disk is full" in (lack_of_room(of_numpy.value) or "")
    assert lack_of_room(PermissionError(13, "Permission denied")) is None
    assert not lack_of_room(FileNotFoundError(2, "No such file or directory"))


@pytest.mark.skipif(os.name != "posix", reason="there is no such question on Windows")
def test_what_dead_writers_left_is_removed_by_the_next_one(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".file.part-{dead.pid}"
    living = tmp_path / f".file.part-{os.getppid()}"
    names = (
        f".file2.part-{dead.pid}",
        ".file.part-x",
        f".file.{dead.pid}",
        f".file.part-{dead.pid}x",
    )
    others = [tmp_path / name for name in names]
    for path in (left, living, *others):
        path.write_text("half")
    write_whole(tmp_path / "file", b"whole")
    assert not left.exists()
    assert all(path.exists() for path in (living, *others))
