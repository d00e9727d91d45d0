"""The bundle writer: all or nothing, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cospec.errors import BundleError, ResourceError
from cospec.runtime.bundle import writer as bundle_writer
from cospec.runtime.bundle.manifest import GenerationDefaults, Manifest, ModelEntry, Models
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.bundle.writer import BundleWriter, exchange_folders

LINUX = sys.platform.startswith("linux")


def make_manifest() -> Manifest:
    target = ModelEntry(
        graph="target/model.onnx",
        source="tiny",
        architecture="LlamaForCausalLM",
        parameters=1_000,
        hidden_size=16,
        kv_shapes=((2, 8),),
        cache_dtype="float32",
    )
    return Manifest(
        name="tiny",
        created_by={"cospec": "0.1.0"},
        lowering="gqa",
        precision="fp32",
        capacity=64,
        vocab_size=100,
        summary_top=4,
        models=Models(target),
        generation=GenerationDefaults(
            bos_token_id=0, eos_token_ids=(1,), num_draft_tokens=4, max_tokens=32, prefill_chunk=32
        ),
        tokenizer="tokenizer.json",
    )


def write(
    destination: Path,
    graph: bytes = b"old",
    *,
    force: bool = False,
    meanwhile: Callable[[BundleWriter], object] = lambda writer: None,
) -> Path:
    with BundleWriter(destination, force=force) as writer:
        writer.path("target/model.onnx").write_bytes(graph)
        writer.path("tokenizer.json").write_bytes(b"{}")
        meanwhile(writer)
        return writer.commit(make_manifest())


def graph_of(root: Path) -> bytes:
    return Bundle.open(root).path("target/model.onnx").read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


@pytest.fixture(params=["exchange", "two renames"])
def either_swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(bundle_writer, "exchange_folders", lambda *_: False)
    elif not LINUX:
        pytest.skip("folders can be exchanged in one step on Linux only")
    return request.param


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
from test_writer import bundle_writer, write, Path
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
    folder = str(Path(__file__).parent)
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


@pytest.mark.skipif(not LINUX, reason="renameat2: Linux")
def test_exchange_swaps_two_folders_in_one_step(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    assert exchange_folders(tmp_path / "one", tmp_path / "two")
    assert names(tmp_path / "one") == ["two"]
    with pytest.raises(FileNotFoundError):
        exchange_folders(tmp_path / "one", tmp_path / "missing")


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
