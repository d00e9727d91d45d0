"""Opening a bundle: what is accepted, and that every kind of damage is named and refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cospec.errors import BundleError
from cospec.runtime.bundle import files as files_module
from cospec.runtime.bundle import reader as bundle_module
from cospec.runtime.bundle import verified
from cospec.runtime.bundle.files import list_files
from cospec.runtime.bundle.manifest import GenerationDefaults, Manifest, ModelEntry, Models
from cospec.runtime.bundle.reader import (
    Bundle,
    check_files,
    find_bundle,
    load_unchanged,
    read_manifest,
    unlisted_files,
)
from cospec.runtime.bundle.writer import BundleWriter

CONTENTS = {
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "target/model.onnx": b"target graph",
    "target/model.onnx.data": bytes(range(256)) * 20,
    "draft/model.onnx": b"draft graph",
}


def make_manifest() -> Manifest:
    target, draft = (
        ModelEntry(
            graph=f"{role}/model.onnx",
            source="tiny",
            architecture="LlamaForCausalLM",
            parameters=1_000,
            hidden_size=16,
            kv_shapes=((2, 8),),
            cache_dtype="float32",
        )
        for role in ("target", "draft")
    )
    return Manifest(
        name="tiny",
        created_by={"cospec": "0.1.0"},
        lowering="gqa",
        precision="fp32",
        capacity=64,
        vocab_size=100,
        summary_top=4,
        models=Models(target, draft),
        generation=GenerationDefaults(
            bos_token_id=0, eos_token_ids=(1,), num_draft_tokens=4, max_tokens=32, prefill_chunk=32
        ),
        tokenizer="tokenizer.json",
        chat_template="chat_template.jinja",
    )


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "models/tiny") -> Path:
        with BundleWriter(tmp_path / name) as writer:
            for relative, contents in CONTENTS.items():
                writer.path(relative).write_bytes(contents)
            return writer.commit(make_manifest())

    return make


@pytest.fixture
def root(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


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


def test_find_accepts_the_bundle_its_parent_and_its_manifest(root):
    assert find_bundle(root) == root
    assert find_bundle(root.parent) == root
    assert find_bundle(root / "cospec.json") == root


def test_find_without_a_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(BundleError, match="no bundle here") as caught:
        find_bundle(tmp_path)
    assert "cospec-export --target tiny" in caught.value.hint


def test_find_lists_several_and_asks_which(make_bundle, tmp_path):
    make_bundle("models/one")
    make_bundle("models/two")
    with pytest.raises(BundleError, match="2 bundles: one, two") as caught:
        find_bundle(tmp_path / "models")
    assert str(tmp_path / "models/one") in caught.value.hint


def test_find_ignores_hidden_folders_and_points_at_an_interrupted_export(root):
    root.rename(root.with_name(".tiny.old-123"))
    with pytest.raises(BundleError, match="no bundle here") as caught:
        find_bundle(root.parent)
    assert "restores .tiny.old-123" in caught.value.hint


@pytest.mark.parametrize("name", ["missing", "file", "x" * 300])
def test_find_in_what_is_no_folder(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        find_bundle(tmp_path / name)
    assert caught.value.hint


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


class Swapper:
    """Two bundles that take the same name in turn, as `cospec-export --force` does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def swap(self) -> None:
        self.count += 1
        graph = f"graph {self.count}".encode()
        with BundleWriter(self.root, force=True) as writer:
            for relative, contents in CONTENTS.items():
                writer.path(relative).write_bytes(contents)
            writer.path("target/model.onnx").write_bytes(graph)
            writer.commit(make_manifest())

    def read(self, bundle: Bundle) -> tuple[str, bytes]:
        return bundle.manifest.seal, bundle.path("target/model.onnx").read_bytes()

    def seal_now(self) -> str:
        return read_manifest(self.root).seal


@pytest.fixture
def swapper(root: Path) -> Swapper:
    return Swapper(root)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_bundle_that_is_replaced_after_it_was_checked_is_loaded_again(swapper, times):
    def make(bundle: Bundle) -> tuple[str, bytes]:
        if swapper.count < times:
            swapper.swap()
        return swapper.read(bundle)

    seal, graph = load_unchanged(swapper.root, make)
    assert seal == swapper.seal_now()
    assert graph == (f"graph {times}".encode() if times else CONTENTS["target/model.onnx"])


def test_a_bundle_that_is_replaced_while_it_is_hashed_is_loaded_again(swapper, monkeypatch):
    hash_files = bundle_module.hash_files

    def replaced(*args: object) -> object:
        if not swapper.count:
            swapper.swap()
        return hash_files(*args)

    monkeypatch.setattr(bundle_module, "hash_files", replaced)
    assert load_unchanged(swapper.root, swapper.read) == (swapper.seal_now(), b"graph 1")


def test_an_error_of_a_mixture_is_no_error(swapper):
    def make(bundle: Bundle) -> str:
        if not swapper.count:
            swapper.swap()
            raise RuntimeError("the graph does not fit")
        return bundle.manifest.seal

    assert load_unchanged(swapper.root, make) == swapper.seal_now()
    with pytest.raises(RuntimeError, match="of its own"):
        load_unchanged(swapper.root, raising(RuntimeError("of its own")))


def raising(error: Exception) -> Callable[[Bundle], object]:
    def make(_: Bundle) -> object:
        raise error

    return make


def test_a_bundle_that_never_stays_is_refused(swapper):
    with pytest.raises(BundleError, match="again and again") as caught:
        load_unchanged(swapper.root, lambda bundle: (swapper.swap(), swapper.read(bundle)))
    assert "no export" in caught.value.hint


def test_a_name_that_is_missing_between_two_renames_is_looked_for_again(swapper, monkeypatch):
    moved = swapper.root.with_name(".tiny.old-1")
    find, calls = bundle_module.find_bundle, []

    def find_after_a_rename(path: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:  # the state was read, now the bundle is opened
            swapper.root.rename(moved)
        elif len(calls) == 3:
            moved.rename(swapper.root)
            swapper.swap()
        return find(path)

    monkeypatch.setattr(bundle_module, "find_bundle", find_after_a_rename)
    assert load_unchanged(swapper.root, swapper.read)[0] == swapper.seal_now()


@pytest.mark.parametrize("change", ["in place", "replaced", "link", "gone"])
def test_a_change_of_one_file_while_it_is_loaded_is_refused(root, tmp_path, change):
    path = root / "target/model.onnx"

    def make(_: Bundle) -> None:
        if change == "in place":
            path.write_bytes(b"TARGET GRAPH")
        elif change == "replaced":
            (tmp_path / "new").write_bytes(CONTENTS["target/model.onnx"])
            (tmp_path / "new").replace(path)
        else:
            path.rename(tmp_path / "elsewhere")
            if change == "link":
                path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleError, match="changed while the bundle was being loaded"):
        load_unchanged(root, make)


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
