"""Stored plans: found only if everything about them matches."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cospec.errors import ResourceError
from cospec.runtime.bundle.manifest import FileEntry
from cospec.runtime.tensorrt.plan_store import PlanKey, PlanStore, graph_sha256

KEY = PlanKey("ab" * 32, "rtx", "1.7.1.116", 86, ("verify 1..4, best at 4",))
PLAN = b"plan" * 1000


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    store = PlanStore(tmp_path)
    store.save("target", KEY, PLAN, "[INFO] log\n")
    return store


def test_a_saved_plan_is_found_and_read(store, tmp_path):
    folder = tmp_path / "engines" / "rtx-1.7.1.116-sm86"
    assert store.find("target", KEY) == folder / "target.plan"
    assert store.read("target", KEY) == PLAN
    assert (folder / "target.log").read_text() == "[INFO] log\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "target.json",
        "target.log",
        "target.plan",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"graph_sha256": "cd" * 32},
        {"flavour": "tensorrt"},
        {"version": "1.7.1.117"},
        {"sm": 89},
        {"flags": ("verify 1..5, best at 5",)},
    ],
)
def test_another_key_finds_nothing(store, changed):
    other = replace(KEY, **changed)
    assert store.find("target", other) is None
    assert store.read("target", other) is None
    assert not store.holds("target", other)


def test_a_key_in_the_right_folder_must_still_match(store, tmp_path):
    other = replace(KEY, graph_sha256="cd" * 32)
    assert other.folder_name == KEY.folder_name
    assert store.find("target", other) is None


def test_a_changed_plan_is_not_loaded(store):
    path = store.find("target", KEY)
    path.write_bytes(PLAN[:-1] + b"!")
    assert store.find("target", KEY) is None
    assert store.read("target", KEY) is None
    assert store.holds("target", KEY), "its key is as before; whoever reads it sees the rest"
    path.unlink()
    assert not store.holds("target", KEY)


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"key": 1}', b'{"plan_sha256": 5}'])
def test_a_damaged_record_finds_nothing(store, tmp_path, record):
    (tmp_path / "engines" / KEY.folder_name / "target.json").write_bytes(record)
    assert store.find("target", KEY) is None


def test_a_link_is_not_followed(store, tmp_path):
    path = store.find("target", KEY)
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    assert store.find("target", KEY) is None
    assert store.read("target", KEY) is None


def test_a_kill_between_plan_and_record_leaves_no_match(store, tmp_path, monkeypatch):
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == "target.json":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save("target", KEY, b"new" * 1000, "")
    assert store.find("target", KEY) is None
    assert not list((tmp_path / "engines" / KEY.folder_name).glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(store, tmp_path):
    (tmp_path / "engines").chmod(0o500)
    for write in (
        lambda key: store.save("target", key, PLAN, ""),
        lambda key: store.ensure_writable(key),
    ):
        with pytest.raises(ResourceError, match="cannot be written"):
            write(replace(KEY, sm=89))
    store.ensure_writable(KEY)


def test_a_folder_that_is_not_writable_is_found_before_the_build(store, monkeypatch):
    store.ensure_writable(replace(KEY, sm=89))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ResourceError, match="no permission"):
        store.ensure_writable(replace(KEY, sm=89))


def test_a_file_in_the_way_is_an_error_of_its_own(tmp_path):
    (tmp_path / "engines").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        PlanStore(tmp_path).save("target", KEY, PLAN, "")


def test_the_timing_cache_is_kept_beside_the_plans(store):
    assert store.timing_cache(KEY) == b""
    store.save_timing_cache(KEY, b"measured")
    assert store.timing_cache(KEY) == b"measured"
    assert store.timing_cache(replace(KEY, sm=89)) == b""


def test_the_graph_hash_covers_its_weights_and_nothing_else():
    graph, weights = FileEntry("target/model.onnx", 1, "1" * 64), "target/model.onnx.data"
    files = [graph, FileEntry(weights, 2, "2" * 64), FileEntry("draft/model.onnx", 3, "3" * 64)]
    found = graph_sha256(files, "target/model.onnx")
    assert found == graph_sha256(reversed(files[:2]), "target/model.onnx")
    other = [graph, FileEntry(weights, 2, "4" * 64)]
    assert found != graph_sha256(other, "target/model.onnx")
    assert len(found) == 64
