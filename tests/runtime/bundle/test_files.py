"""List and hash the files of a bundle."""

from __future__ import annotations

import hashlib
import os
import signal
import threading

import pytest

from cospec.runtime.bundle import files as files_module
from cospec.runtime.bundle.files import list_files


def test_listing(tmp_path):
    (tmp_path / "b/c").mkdir(parents=True)
    (tmp_path / "b/c/d").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"")
    assert list_files(tmp_path) == ["a", "b/c/d"]


def test_hashes_of_many_files_are_those_of_one_after_the_other(tmp_path):
    sizes = {}
    for number, size in enumerate([0, 1, 5 << 20, 9_000_000, 3]):
        sizes[f"f{number}"] = size
        (tmp_path / f"f{number}").write_bytes(os.urandom(size))
    done: list[int] = []
    found = files_module.hash_files(tmp_path, {**sizes, "missing": 7}, done.append)
    assert list(found) == [*sizes, "missing"]
    assert isinstance(found.pop("missing"), FileNotFoundError)
    for name, entry in found.items():
        data = (tmp_path / name).read_bytes()
        assert (
            entry[0] == hashlib.sha256(data).hexdigest() == files_module.sha256_of(tmp_path / name)
        )
    assert sum(done) == sum(sizes.values())


def test_an_interrupt_while_hashing_does_not_wait_for_the_rest(tmp_path):
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(1 << 40)  # a terabyte, nothing on the disk
    calls = 0

    def interrupt(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        files_module.hash_files(tmp_path, {"a": 1 << 40, "b": 1 << 40}, interrupt)
