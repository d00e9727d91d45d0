"""Disks that are full, read-only or fail under a writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from small_bundles import graph_of, names, write

from cospec.errors import ResourceError
from cospec.runtime.bundle.writer import BundleWriter


@pytest.mark.parametrize("below", ["", "deeper/"])
def test_a_parent_that_is_a_file_is_a_resource_error(tmp_path, below):
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        BundleWriter(tmp_path / "models" / f"{below}tiny").__enter__()
    assert "may write to" in caught.value.hint


def test_a_name_too_long_for_the_disk_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match="name too long"):
        BundleWriter(tmp_path / ("x" * 300)).__enter__()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_a_resource_error(destination):
    destination.parent.mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="cannot be written"):
        BundleWriter(destination).__enter__()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_parent_that_cannot_be_written_is_a_resource_error(destination, monkeypatch, code):
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match=os.strerror(code)) as caught:
        BundleWriter(destination).__enter__()
    assert str(destination.parent) in caught.value.message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_while_the_caller_writes_is_a_resource_error(destination):
    def fill(_: BundleWriter) -> None:
        Path("/dev/full").write_bytes(b"a real ENOSPC")

    with pytest.raises(ResourceError, match=r"the disk is full \(5 B of the bundle") as caught:
        write(destination, b"123", meanwhile=fill)  # and two bytes of tokenizer
    assert "are free" in caught.value.message
    assert isinstance(caught.value.__cause__, OSError)
    assert names(destination.parent) == [".tiny.lock"]


def test_a_full_disk_at_the_flush_leaves_the_old_bundle(destination, monkeypatch):
    write(destination)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        write(destination, b"new", force=True)
    assert graph_of(destination) == b"old"
    assert names(destination.parent) == [".tiny.lock", "tiny"]


def test_an_error_of_the_caller_about_another_file_stays_itself(destination, tmp_path):
    with pytest.raises(FileNotFoundError), BundleWriter(destination):
        (tmp_path / "no-checkpoint").read_bytes()
