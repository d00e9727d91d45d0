"""The record of files that were hashed before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundles import Swapper

from cospec.errors import BundleError
from cospec.runtime.bundle import reader as bundle_module
from cospec.runtime.bundle import verified
from cospec.runtime.bundle.reader import (
    Bundle,
    check_files,
    read_manifest,
)


@pytest.fixture
def recorded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A bundle that was opened once; returns whether opening it now hashes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "RECORD_FROM_BYTES", 1)
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    Bundle.open(root)
    hash_files = bundle_module.hash_files

    def is_recorded() -> bool:
        hashed: list[object] = []
        monkeypatch.setattr(
            bundle_module, "hash_files", lambda *a: (hashed.append(a), hash_files(*a))[1]
        )
        Bundle.open(root)
        return not hashed

    return is_recorded


def test_a_bundle_that_was_hashed_is_not_hashed_again(root, recorded):
    assert recorded()
    assert recorded()
    report = check_files(root, read_manifest(root))
    assert all(each.actual_sha256 for each in report), "cospec-verify hashes always"


def test_the_same_size_and_time_do_not_hide_a_change(root, recorded):
    path = root / "target/model.onnx"
    before = path.stat()
    path.write_bytes(b"TARGET GRAPH")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(BundleError, match="SHA-256 differs"):
        recorded()


@pytest.mark.parametrize("change", ["a copy", "another time", "another seal", "moved"])
def test_whatever_differs_is_hashed_again(root, recorded, change):
    path = root / "target/model.onnx"
    if change == "a copy":
        (root / "copy").write_bytes(path.read_bytes())
        (root / "copy").replace(path)
    elif change == "another time":
        os.utime(path)
    elif change == "another seal":
        Swapper(root).swap()
    else:
        root.rename(root.with_name("moved"))
        root.with_name("moved").rename(root)
        assert recorded(), "a renamed folder holds the same files"
        os.link(path, root.with_name("link"))  # changes the inode's time alone
    assert not recorded()
    assert recorded()


def test_the_record_can_be_turned_off(recorded, monkeypatch):
    monkeypatch.setenv(verified.VARIABLE, "always")
    assert not recorded()
    monkeypatch.delenv(verified.VARIABLE)
    assert recorded()


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"a": 1}', b"{" * 99, b"\xff" * (2 << 20)])
def test_a_damaged_record_is_none(recorded, damage):
    verified.record_path().write_bytes(damage)
    assert not recorded()
    assert recorded()


def test_a_record_that_others_can_write_is_none(recorded):
    verified.record_path().chmod(0o666)
    assert not recorded()


def test_without_a_place_for_the_record_a_bundle_opens_all_the_same(root, recorded, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert not recorded()
    assert not recorded()


def test_a_file_that_has_just_changed_is_not_recorded(root, recorded, monkeypatch):
    monkeypatch.setattr(verified, "SETTLED_NS", 3600 * 10**9)
    os.utime(root / "target/model.onnx")
    assert not recorded()
    assert not recorded()


def test_small_bundles_and_old_entries_leave_the_record(root, recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(verified, "MAX_BUNDLES", 1)
    other = Swapper(tmp_path / "other")
    other.swap()
    Bundle.open(other.root)
    assert list(json.loads(verified.record_path().read_text())) == [str(other.root)]
    assert not recorded(), "the newest only"
    monkeypatch.setattr(verified, "RECORD_FROM_BYTES", 1 << 30)
    assert not recorded()
