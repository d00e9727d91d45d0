"""The bundle writer: all or nothing, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundles import graph_of, names, write

from cospec.errors import BundleError, ResourceError
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.bundle.writer import BundleWriter, exchange_folders

LINUX = sys.platform.startswith("linux")


def test_a_written_bundle_opens_and_nothing_else_is_left(destination):
    assert write(destination) == destination
    assert graph_of(destination) == b"old"
    assert names(destination) == ["cospec.json", "target", "tokenizer.json"]
    assert names(destination.parent) == [".tiny.lock", "tiny"]


def test_the_same_contents_give_the_same_seal(tmp_path):
    first, second = (Bundle.open(write(tmp_path / name)) for name in ("one", "two"))
    assert first.manifest.seal == second.manifest.seal


def test_nothing_shows_under_the_name_before_commit(destination):
    with BundleWriter(destination) as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        assert not destination.exists()
    assert names(destination.parent) == [".tiny.lock"], "without commit nothing is left"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_an_exception_in_the_middle_leaves_what_was_there(destination, error, existing):
    def fail(_: BundleWriter) -> None:
        raise error

    if existing:
        write(destination)
    with pytest.raises(error):
        write(destination, b"new", force=True, meanwhile=fail)
    assert names(destination.parent) == [".tiny.lock", "tiny"][: 1 + existing]
    if existing:
        assert graph_of(destination) == b"old"


def test_force_replaces_a_bundle_and_its_engines(destination, either_swap):
    write(destination)
    (destination / "engines").mkdir()
    write(destination, b"new", force=True)
    assert graph_of(destination) == b"new"
    assert names(destination) == ["cospec.json", "target", "tokenizer.json"]
    assert names(destination.parent) == [".tiny.lock", "tiny"]


def test_without_force_an_existing_bundle_is_refused_before_any_work(destination):
    write(destination)
    with pytest.raises(ResourceError, match="a bundle is there already") as caught:
        BundleWriter(destination).__enter__()
    assert "--force" in caught.value.hint
    assert graph_of(destination) == b"old"


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_a_bundle_is_never_overwritten(destination, kind, force):
    precious = destination / "thesis.txt" if kind == "folder" else destination
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(ResourceError, match="not a bundle"):
        BundleWriter(destination, force=force).__enter__()
    assert precious.read_text() == "years of work"


def test_a_folder_that_appears_meanwhile_is_not_overwritten(destination):
    def appear(_: BundleWriter) -> None:
        destination.mkdir()
        (destination / "thesis.txt").write_text("years of work")

    with pytest.raises(ResourceError, match="not a bundle"):
        write(destination, force=True, meanwhile=appear)
    assert names(destination) == ["thesis.txt"]


def test_an_empty_folder_is_taken(destination, either_swap):
    destination.mkdir(parents=True)
    assert graph_of(write(destination)) == b"old"
    assert names(destination.parent) == [".tiny.lock", "tiny"]


def test_a_link_to_a_bundle_is_followed(destination, tmp_path):
    write(destination)
    link = tmp_path / "link"
    link.symlink_to(destination, target_is_directory=True)
    write(link, b"new", force=True)
    assert link.is_symlink()
    assert graph_of(destination) == b"new"


def test_a_second_writer_is_refused_at_once_and_the_first_goes_on(destination):
    def start_another(_: BundleWriter) -> None:
        with pytest.raises(ResourceError, match="another export is writing it") as caught:
            BundleWriter(destination).__enter__()
        assert f"process {os.getpid()}" in caught.value.message
        assert "Wait" in caught.value.hint

    write(destination, b"first", meanwhile=start_another)
    assert graph_of(destination) == b"first"


def test_a_second_process_is_refused_too(destination):
    def start_another(_: BundleWriter) -> None:
        command = [sys.executable, "-c", SECOND_WRITER, str(destination)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert f"(process {os.getpid()})" in done.stdout, done.stderr

    write(destination, b"first", meanwhile=start_another)
    assert graph_of(destination) == b"first"


SECOND_WRITER = """
import sys
from cospec.runtime.bundle.writer import BundleWriter, ResourceError
try:
    BundleWriter(sys.argv[1]).__enter__()
except ResourceError as error:
    print(error)
"""


def test_a_file_that_the_manifest_names_must_have_been_written(destination):
    with pytest.raises(BundleError, match=r"target/model\.onnx"):
        write(destination, meanwhile=lambda writer: writer.path("target/model.onnx").unlink())
    assert not destination.exists()


def test_links_do_not_get_into_a_bundle(destination, tmp_path):
    def link(writer: BundleWriter) -> None:
        writer.path("target/model.onnx.data").symlink_to(tmp_path)

    with pytest.raises(ResourceError, match="symbolic link"):
        write(destination, meanwhile=link)
    assert not destination.exists()


@pytest.mark.skipif(not LINUX, reason="renameat2: Linux")
def test_exchange_swaps_two_folders_in_one_step(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    assert exchange_folders(tmp_path / "one", tmp_path / "two")
    assert names(tmp_path / "one") == ["two"]
    with pytest.raises(FileNotFoundError):
        exchange_folders(tmp_path / "one", tmp_path / "missing")


def test_everything_is_flushed_before_the_swap(destination, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(
        Path, "rename", lambda path, to: (events.append("rename"), rename(path, to))[1]
    )
    write(destination)
    # Three files and two folders of the bundle, the swap, then the folder that holds the name.
    assert events == ["fsync"] * 5 + ["rename", "fsync"]
