import pytest

from cospec.errors import CheckpointError
from cospec.models.presets import NO_DRAFT, PACKAGED, PRESETS, resolve, resolve_pair
from cospec.models.source import HUB_ID


@pytest.mark.parametrize("preset", PRESETS.values(), ids=str)
def test_table_is_consistent(preset):
    assert preset.target in PACKAGED or HUB_ID.fullmatch(preset.target)
    assert preset.draft is None or preset.draft in PRESETS
    assert preset.draft != preset.name
    assert preset.name == preset.name.lower()


def test_names_and_targets_are_unique():
    targets = [preset.target for preset in PRESETS.values()]
    assert len(set(targets)) == len(targets)


def test_preset_brings_its_draft():
    target, draft = resolve_pair("llama-8b")
    assert target.location == "meta-llama/Llama-3.1-8B-Instruct"
    assert target.gated
    assert target.kind == "hub"
    assert draft is not None
    assert draft.location == "meta-llama/Llama-3.2-1B-Instruct"


def test_tiny_is_packaged():
    target, draft = resolve_pair("tiny")
    assert target.kind == "packaged"
    assert target.location.endswith("target")
    assert draft is not None
    assert draft.location.endswith("draft")


@pytest.mark.parametrize("word", [NO_DRAFT, "None"])
def test_draft_can_be_refused(word):
    assert resolve_pair("qwen3-8b", word)[1] is None


def test_no_default_draft_without_a_preset(tmp_path):
    assert resolve_pair(str(tmp_path))[1] is None
    assert resolve_pair("smollm2-135m")[1] is None


def test_another_preset_as_draft():
    draft = resolve_pair("qwen3-8b", "qwen3-1.7b")[1]
    assert draft is not None
    assert draft.location == "Qwen/Qwen3-1.7B"


def test_known_hub_id_carries_its_gate():
    assert resolve("google/gemma-2-2b-it").gated
    assert not resolve("some/where-else").gated


def test_local_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"")
    assert resolve("org/model").kind == "folder"  # a folder wins over a hub id
    assert resolve("tiny").kind == "packaged"  # a preset wins over a folder
    assert resolve("./tiny").location == str(tmp_path / "tiny")
    assert resolve("mine").kind == "folder"
    assert resolve("x.gguf").kind == "gguf"
    assert resolve("org/other").kind == "hub"


def test_unknown_word_suggests_and_lists():
    with pytest.raises(CheckpointError) as caught:
        resolve("lama-8b")
    assert "Did you mean llama-8b?" in str(caught.value)
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize("word", ["./gone", "/gone", "a/b/c", "~/gone", "gone.gguf", "gone/"])
def test_missing_path(word):
    with pytest.raises(CheckpointError, match="no such"):
        resolve(word)


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only \.gguf"):
        resolve(str(file))


@pytest.mark.parametrize("word", ["", " ", "a b", "-x/y", "org/", "é"])
def test_nonsense(word):
    with pytest.raises(CheckpointError):
        resolve(word)
