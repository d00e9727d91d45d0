"""A bundle that is replaced while it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundles import CONTENTS, Swapper

from cospec.errors import BundleError
from cospec.runtime.bundle import reader as bundle_module
from cospec.runtime.bundle.reader import (
    Bundle,
    load_unchanged,
)


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
