"""Opening a bundle: what is accepted, and that every kind of damage is named and refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundles import CONTENTS

from cospec.errors import BundleError
from cospec.runtime.bundle import files as files_module
from cospec.runtime.bundle import reader as bundle_module
from cospec.runtime.bundle.reader import (
    Bundle,
    check_files,
    read_manifest,
    unlisted_files,
)


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def untouched(look_at: Callable[..., object]) -> Callable[..., object]:
    """Return `look_at` for the manifest alone."""

    def look(root: Path, relative: str) -> object:
        assert relative == "cospec.json", "too early"
        return look_at(root, relative)

    return look


def refusal(root: Path, **options: bool) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(root, **options)
    assert caught.value.hint, "every refusal says what to do"
    return caught.value


def test_open_gives_the_manifest_and_the_paths(root):
    bundle = Bundle.open(root)
    assert bundle.root == root
    assert [entry.path for entry in bundle.manifest.files] == sorted(CONTENTS)
    for relative, contents in CONTENTS.items():
        assert bundle.path(relative).read_bytes() == contents
    with pytest.raises(BundleError, match="not a file of this bundle"):
        bundle.path("target/other.onnx")
    with pytest.raises(BundleError, match="not a file of this bundle"):
        bundle.path("../outside")


@pytest.mark.parametrize("relative", sorted(CONTENTS))
@pytest.mark.parametrize("position", [0, -1])
def test_one_flipped_byte_in_any_file_is_refused(root, relative, position):
    flip_byte(root / relative, position)
    error = refusal(root)
    assert str(root / relative) in error.message
    assert "SHA-256" in error.message
    assert "Copy the bundle again" in error.hint
    assert Bundle.open(root, verify=False).manifest.name == "tiny", "verify=False skips hashes only"


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("relative", sorted(CONTENTS))
def test_a_truncated_file_is_refused_even_without_hashing(root, relative, verify):
    path = root / relative
    path.write_bytes(path.read_bytes()[:-1])
    size = len(CONTENTS[relative])
    assert f"has {size - 1} bytes, but {size} were written" in refusal(root, verify=verify).message


@pytest.mark.parametrize("relative", ["cospec.json", *sorted(CONTENTS)])
def test_a_missing_file_is_refused(root, relative):
    (root / relative).unlink()
    assert f"{root / relative} is missing" in refusal(root).message


def test_the_manifest_is_checked_before_anything_else_is_touched(root, monkeypatch):
    flip_byte(root / "cospec.json", 10)
    monkeypatch.setattr(bundle_module, "look_at", untouched(bundle_module.look_at))
    assert "cospec.json" in refusal(root).message


def test_all_sizes_are_checked_before_the_first_hash(root, monkeypatch):
    (root / "tokenizer.json").write_bytes(b"")  # the last file in order
    monkeypatch.setattr(bundle_module, "hash_files", lambda *_: pytest.fail("too early"))
    assert "tokenizer.json" in refusal(root).message


def test_an_extra_file_is_reported_and_otherwise_ignored(root):
    for extra in ("notes.txt", "target/extra.bin", ".hidden", "engines/a/b.plan", ".cospec-lock"):
        (root / extra).parent.mkdir(parents=True, exist_ok=True)
        (root / extra).write_bytes(b"x")
    (root / "loop").symlink_to(root, target_is_directory=True)
    manifest = Bundle.open(root).manifest
    assert unlisted_files(root, manifest) == [".hidden", "loop", "notes.txt", "target/extra.bin"]


@pytest.mark.parametrize("relative", ["cospec.json", "tokenizer.json", "target/model.onnx"])
def test_a_symlinked_file_is_refused_even_with_the_right_contents(root, tmp_path, relative):
    (root / relative).rename(tmp_path / "elsewhere")
    (root / relative).symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refusal(root).message


def test_a_symlinked_folder_inside_is_refused_and_the_hint_says_how_to_copy(root, tmp_path):
    (root / "target").rename(tmp_path / "elsewhere")
    (root / "target").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    error = refusal(root)
    assert "symbolic link ('target')" in error.message
    assert "cp -rL" in error.hint


def test_a_symlink_to_the_whole_bundle_is_fine(root, tmp_path):
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert Bundle.open(tmp_path / "link").root == root


@pytest.mark.parametrize("relative", ["cospec.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "socket"])
def test_what_is_not_a_regular_file_is_refused_without_reading_it(
    root, relative, kind, monkeypatch
):
    monkeypatch.chdir(root)  # socket paths are short
    Path(relative).unlink()
    if kind == "folder":
        Path(relative).mkdir()
    elif kind == "fifo":
        os.mkfifo(relative)  # opening one would wait for ever
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(relative)
    assert "is not a regular file" in refusal(root).message


def test_a_file_in_place_of_a_folder_is_a_missing_file(root):
    for path in (root / "draft").iterdir():
        path.unlink()
    (root / "draft").rmdir()
    (root / "draft").write_bytes(b"")
    assert "draft/model.onnx is missing" in refusal(root).message


def test_a_read_error_is_reported_and_not_raised(root, monkeypatch):
    def fail(*_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files_module, "hash_file", fail)
    reports = check_files(root, read_manifest(root))
    assert {report.problem for report in reports} == {"cannot be read (Input/output error)"}
    assert "Input/output error" in refusal(root).message


def test_an_oversized_manifest_is_refused_without_reading_all_of_it(root):
    with (root / "cospec.json").open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte to read, nothing on the disk
    assert "larger than" in refusal(root).message
