"""Opening a bundle: what is accepted, and that every kind of damage is named and refused."""

from __future__ import annotations

import hashlib
import os
import re
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
    load_unchanged,
    read_manifest,
    unlisted_files,
)


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def untouched(look_at: Callable[..., object]) -> Callable[..., object]:
    """Return `look_at` for the manifest alone."""

    def look(root: Path, relative: str, **options: bool) -> object:
        assert relative == "cospec.json", "too early"
        return look_at(root, relative, **options)

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


@pytest.fixture
def snapshot(root: Path, tmp_path: Path) -> Path:
    """The bundle as huggingface_hub keeps it: a snapshot of links into the folder of blobs."""
    repository = tmp_path / "hub/models--org--name"
    folder = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    for path in filter(Path.is_file, sorted(root.rglob("*"))):
        relative = path.relative_to(root)
        name = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(repository / "blobs" / name)
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(relative.parts) + 1)
        (folder / relative).symlink_to(f"{up}blobs/{name}")
    return folder


def test_a_bundle_is_read_as_it_lies_in_the_cache_of_the_hub(snapshot):
    bundle = Bundle.open(snapshot)
    assert {path: bundle.path(path).read_bytes() for path in CONTENTS} == CONTENTS
    assert [report.ok for report in check_files(snapshot, bundle.manifest)] == [True] * len(
        CONTENTS
    )
    assert unlisted_files(snapshot, bundle.manifest) == []


def share(snapshot: Path, relative: str, name: str) -> Path:
    """Move the blob of a file to the blobs that all repositories share, as newer versions do."""
    blob = (snapshot / relative).resolve()
    shared = snapshot.parents[2] / "blobs" / name[:2] / name
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/{name[:2]}/{name}")
    return shared


def test_a_blob_that_repositories_share_is_read(snapshot):
    shared = share(snapshot, "target/model.onnx", "ab" * 32)
    assert Bundle.open(snapshot).path("target/model.onnx").read_bytes() == shared.read_bytes()
    flip_byte(shared, 0)
    assert "SHA-256" in refusal(snapshot).message


@pytest.mark.parametrize("kind", ["name", "link", "folder is a link"])
def test_no_other_link_of_a_blob_is_followed(snapshot, tmp_path, kind):
    shared = share(snapshot, "target/model.onnx", "x" * 64 if kind == "name" else "ab" * 32)
    if kind == "link":
        shared.symlink_to(shared.rename(tmp_path / "elsewhere"))
    elif kind == "folder is a link":
        shared.parent.symlink_to(shared.parent.rename(tmp_path / "elsewhere"))
    assert "symbolic link" in refusal(snapshot).message


@pytest.mark.parametrize("relative", ["cospec.json", "target/model.onnx"])
@pytest.mark.parametrize(
    "kind",
    ["elsewhere", "absolute", "too deep", "not a hash", "link", "folder", "blobs", "other folder"],
)
def test_no_other_link_of_a_snapshot_is_followed(snapshot, tmp_path, relative, kind):
    """Each leads to the right contents, and is no link that huggingface_hub makes."""
    link, repository = snapshot / relative, snapshot.parent.parent
    blob, text = link.resolve(), str(link.readlink())
    if kind == "elsewhere":
        text = os.path.relpath(blob.rename(tmp_path / blob.name), link.parent)
    elif kind == "absolute":
        text = str(blob)
    elif kind == "too deep":
        text = text.replace("blobs/", "../models--org--name/blobs/")
    elif kind == "not a hash":
        blob.rename(blob.with_name("x"))
        text = text.replace(blob.name, "x")
    elif kind == "link":
        blob.symlink_to(blob.rename(tmp_path / blob.name))
    elif kind == "folder":
        blob.unlink()
        blob.mkdir()
    elif kind == "blobs":
        (repository / "blobs").rename(tmp_path / "blobs")
        (repository / "blobs").symlink_to(tmp_path / "blobs")
    else:
        snapshot = (repository / "snapshots").rename(repository / "other") / snapshot.name
        link = snapshot / relative
    link.unlink()
    link.symlink_to(text)
    assert re.search("symbolic link|not a regular file", refusal(snapshot).message)


def test_a_flipped_byte_in_a_blob_is_refused(snapshot):
    flip_byte((snapshot / "tokenizer.json").resolve(), 0)
    error = refusal(snapshot)
    assert "SHA-256" in error.message
    assert "hf cache rm model/org/name" in error.hint


def test_a_blob_that_is_replaced_while_it_is_loaded_is_refused(snapshot):
    link = snapshot / "target/model.onnx"

    def make(_: Bundle) -> None:
        other = link.resolve().with_name("1" * 64)
        other.write_bytes(CONTENTS["target/model.onnx"])
        text = str(link.readlink()).rpartition("/")[0]
        link.unlink()
        link.symlink_to(f"{text}/{other.name}")

    with pytest.raises(BundleError, match="changed while the bundle was being loaded"):
        load_unchanged(snapshot, make)


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
