"""An arbiter of the package goes with the bytes that it was trained for, and with no others."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from cospec.export.pair import ExportOptions, arbiter_folder
from cospec.models import known_arbiters
from cospec.models.known_arbiters import known_arbiter


def facts(content: bytes) -> dict[str, object]:
    return {"size": len(content), "sha256": sha256(content).hexdigest()}


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """A target file, the folders of a draft and an adapter, and an arbiter that knows them."""
    target = tmp_path / "target.gguf"
    target.write_bytes(b"target")
    paths = {"target": target, "known": tmp_path / "known"}
    for name, file in (("draft", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        paths[name] = tmp_path / name
        paths[name].mkdir()
        (paths[name] / file).write_bytes(name.encode())
    for name, files in {
        "alone": {"target": facts(b"target"), "draft": facts(b"draft")},
        "adapted": {
            "target": facts(b"target"),
            "draft": facts(b"draft"),
            "draft_adapter": facts(b"adapter"),
        },
    }.items():
        folder = paths["known"] / name
        folder.mkdir(parents=True)
        (folder / "pair.json").write_text(json.dumps(files))
    return paths


def test_the_pair_finds_its_arbiter(pair):
    target, draft, adapter, known = (pair[n] for n in ("target", "draft", "adapter", "known"))
    assert known_arbiter(target, draft, known=known) == known / "alone"
    assert known_arbiter(target, draft, adapter, known) == known / "adapted"


@pytest.mark.parametrize(
    "changed", ["target", "draft/model.safetensors", "adapter/adapter_model.safetensors"]
)
def test_one_other_byte_is_another_pair(pair, changed):
    name, _, file = changed.partition("/")
    path = pair[name] / file if file else pair[name]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert known_arbiter(pair["target"], pair["draft"], pair["adapter"], pair["known"]) is None


def test_only_files_of_the_right_size_are_read(pair, monkeypatch):
    pair["target"].write_bytes(b"longer than it was")
    monkeypatch.setattr(known_arbiters, "sha256_of", lambda path: pytest.fail(f"{path} was read"))
    assert known_arbiter(pair["target"], pair["draft"], known=pair["known"]) is None


def test_an_export_finds_it_unless_the_target_is_changed_or_another_is_named(pair, monkeypatch):
    monkeypatch.setattr("cospec.models.presets.known_arbiter", _in(pair["known"]))
    options = {"target": str(pair["target"]), "draft": str(pair["draft"])}
    assert arbiter_folder(ExportOptions(**options)) == pair["known"] / "alone"
    adapted = ExportOptions(**options, draft_adapter=pair["adapter"])
    assert arbiter_folder(adapted) == pair["known"] / "adapted"
    assert arbiter_folder(ExportOptions(**options, adapter=pair["adapter"])) is None
    assert arbiter_folder(ExportOptions(**options, arbiter="none")) is None
    assert arbiter_folder(ExportOptions(target="tiny", draft=str(pair["draft"]))) is None


def _in(known: Path):
    return lambda *paths: known_arbiter(*paths, known=known)
