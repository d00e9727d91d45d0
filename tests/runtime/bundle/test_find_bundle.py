"""Find a bundle from the name that a user gives."""

from __future__ import annotations

import pytest

from cospec.errors import BundleError
from cospec.runtime.bundle.reader import (
    find_bundle,
)


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
