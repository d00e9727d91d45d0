"""Answers end where the checkpoint's author says, wherever he says it."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from gguf_files import CONTROL, SPM_TOKENS, write_gguf
from speaking import write_speaking_folder, write_speaking_gguf

from cospec.errors import CheckpointError
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.models.checkpoint import open_checkpoint
from cospec.models.ends import BY_SPELLING
from cospec.models.presets import resolve
from cospec.runtime.bundle.manifest import SamplingDefaults
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.cli import inspect
from cospec.runtime.decoding.session import load

HI = ["H", "i", "Ġ", "y", "o", "u", "."]


def opened(path):
    return open_checkpoint(resolve(str(path)))


def edit(file, **changes):
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(content | changes), encoding="utf-8")


def answer(path, tmp_path):
    """What a bundle of the checkpoint answers, and the bundle."""
    options = ExportOptions(str(path), draft="none", capacity=64)
    bundle = Bundle.open(export_bundle(options, tmp_path / "bundle"))
    return load(bundle.root).generate("hello?", max_tokens=20), bundle


# GGUF files that name the end of text, and leave the end of a turn to its spelling.


@pytest.mark.parametrize(
    ("special", "end"),
    [
        (["<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (["<eos>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
        (["<|endoftext|>", "<|user|>", "<|end|>"], "<|end|>"),
        (["<|end_of_text|>", "<|eom_id|>", "<|python_tag|>"], "<|eom_id|>"),
    ],
)
def test_a_gguf_file_without_end_of_turn_keys(tmp_path, special, end):
    keys = {"ggml__eos_token_id": 256, "ggml__pre": "llama-bpe"}
    file = write_speaking_gguf(tmp_path / "m.gguf", special, [*HI, end, "#", "%"], **keys)
    output, bundle = answer(file, tmp_path)
    assert (output.text, output.finish_reason) == ("Hi you.", "eos")
    chosen = bundle.manifest.generation
    assert chosen.eos_token_ids == (256, 256 + special.index(end))
    assert chosen.eos_token_sources[0].startswith(f"{special[0]!r}: eos_token_id")
    assert chosen.eos_token_sources[1] == f"{end!r}: {BY_SPELLING}"
    shown = CliRunner().invoke(inspect.main, [str(bundle.root)]).stdout
    assert f"{chosen.eos_token_ids[1]}  {end!r}: {BY_SPELLING}" in shown


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "phi3", "llama"])
def test_a_sentencepiece_vocabulary_without_end_of_turn_keys(tmp_path, architecture):
    turn = "<|end|>" if architecture == "phi3" else "<end_of_turn>"
    tokens = [*SPM_TOKENS, (turn, CONTROL), ("<start_of_turn>", CONTROL)]
    keys = {"ggml__bos_token_id": 1, "ggml__eos_token_id": 2}
    own = {"attention.sliding_window": 32} if "gemma" in architecture else {}
    file = write_gguf(tmp_path / "m.gguf", tokens, architecture=architecture, sizes=own, **keys)
    assert opened(file).eos_ids == (2, len(SPM_TOKENS))


@pytest.mark.parametrize("key", ["eos", "eot", "eom"])
def test_every_key_of_a_gguf_file_counts(tmp_path, key):
    special = ["<a>", "<b>", "<c>"]
    keys = {f"ggml__{name}_token_id": 256 + i for i, name in enumerate(("eos", "eot", "eom"))}
    file = write_speaking_gguf(tmp_path / "m.gguf", special, HI, **keys)
    named = {end.id: end.sources for end in opened(file).ends}
    assert f"{key}_token_id" in named[keys[f"ggml__{key}_token_id"]]


def test_an_ordinary_token_of_that_spelling_is_text(tmp_path):
    """Some vocabularies hold </s> as a piece of HTML."""
    file = write_speaking_gguf(
        tmp_path / "m.gguf", ["<eos>"], HI, ordinary=("</s>", "<|end|>"), ggml__eos_token_id=256
    )
    assert opened(file).eos_ids == (256,)


@pytest.mark.parametrize(
    ("special", "ends"),
    [
        (["<|return|>", "<|call|>", "<|end|>"], {"<|return|>", "<|call|>"}),
        (["<|end|>", "<|assistant|>"], {"<|end|>"}),
        (["<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"], {"<|endoftext|>"}),
        (["<|im_start|>", "<pad>", "<unk>", "<|vision_end|>"], set()),
    ],
)
def test_tokens_inside_an_answer_are_no_ends(tmp_path, special, ends):
    folder = write_speaking_folder(tmp_path / "m", special, HI)
    assert {end.text for end in opened(folder).ends} == ends


# Folders whose files disagree.


@pytest.fixture
def folder(tmp_path):
    special = ["<|endoftext|>", "<|im_start|>", "<a turn>"]
    return write_speaking_folder(tmp_path / "m", special, [*HI, "<a turn>", "#", "%"])


@pytest.mark.parametrize(
    ("file", "content", "source"),
    [
        ("tokenizer_config.json", {"eos_token": "<a turn>"}, "the tokenizer's eos_token"),
        ("special_tokens_map.json", {"eos_token": "<a turn>"}, "the tokenizer's eos_token"),
        ("generation_config.json", {"eos_token_id": [258]}, "generation_config.json"),
        ("config.json", {"eos_token_id": 258}, "config.json"),
        ("config.json", {"text_config": {"eos_token_id": 258}}, "config.json"),
    ],
)
def test_every_file_counts(folder, file, content, source):
    edit(folder / file, **content)
    (ours,) = (end for end in opened(folder).ends if end.id == 258)
    assert ours.sources == (source,)
    # The base model's end stays one, as the file that names it is the old one.
    edit(folder / "config.json", eos_token_id=256)
    assert 256 in opened(folder).eos_ids


def test_a_fine_tune_that_left_the_base_models_end_in_its_config(folder, tmp_path):
    edit(folder / "config.json", eos_token_id=256)
    edit(folder / "generation_config.json", eos_token_id=256)
    edit(folder / "tokenizer_config.json", eos_token="<a turn>")
    output, bundle = answer(folder, tmp_path)
    assert (output.text, output.finish_reason) == ("Hi you.", "eos")
    assert bundle.manifest.generation.eos_token_ids == (256, 258)
    assert bundle.manifest.generation.eos_token_sources == (
        "'<|endoftext|>': generation_config.json, config.json, known spelling",
        "'<a turn>': the tokenizer's eos_token",
    )


def test_a_default_of_transformers_counts_only_where_nothing_is_named(tmp_path):
    folder = write_speaking_folder(tmp_path / "m", ["<a>"], HI)
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert opened(folder).eos_ids == (2,), "what transformers' own generate() would end at"
    edit(folder / "tokenizer_config.json", eos_token="<a>")
    assert opened(folder).eos_ids == (256,)


def test_ids_beyond_the_vocabulary_end_nothing(folder):
    edit(folder / "generation_config.json", eos_token_id=[258, 9999, -1, None, "x"])
    assert opened(folder).eos_ids == (258, 256)


# The author's sampling.


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, None),
        ({"temperature": 0.6, "top_p": 0.9}, None),
        ({"do_sample": False, "temperature": 0.6}, None),
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": None},
            {"temperature": 0.6, "top_p": 0.9, "top_k": 20},
        ),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": True, "temperature": 1}, {"temperature": 1.0}),
    ],
)
def test_sampling_of_generation_config(folder, stated, expected):
    edit(folder / "generation_config.json", **stated)
    assert opened(folder).sampling == (None if expected is None else SamplingDefaults(**expected))


def test_sampling_is_shown(folder, tmp_path):
    def shown():
        _, bundle = answer(folder, tmp_path)
        return CliRunner().invoke(inspect.main, [str(bundle.root)]).stdout

    assert "sampling    greedy\n" in shown()
    edit(folder / "generation_config.json", do_sample=True, temperature=0.6, top_k=20)
    shutil.rmtree(tmp_path / "bundle")
    assert "sampling    temperature 0.6, top_k 20\n" in shown()


@pytest.mark.parametrize("value", [-1, "hot", 1e9, True, [1]])
def test_sampling_that_makes_no_sense_is_refused(folder, value):
    edit(folder / "generation_config.json", do_sample=True, temperature=value)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: temperature"):
        opened(folder)
