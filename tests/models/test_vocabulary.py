import json
import shutil

import pytest
from factories import BOS, EOS, random_checkpoint, write_tokenizer
from tokenizers import Tokenizer

from cospec.errors import CheckpointError
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.models.vocabulary import shared_vocabulary, tokenizer_json


@pytest.fixture
def folder(checkpoint_of, tmp_path):
    return shutil.copytree(checkpoint_of("llama"), tmp_path / "copy")


@pytest.fixture
def target(checkpoint_of):
    return opened(checkpoint_of("llama"))


def opened(folder):
    return open_checkpoint(resolve(str(folder)))


def edit(folder, change):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_same_tokenizer_and_padded_sizes(target, checkpoint_of):
    assert shared_vocabulary(target, target).size == 320
    wider = opened(checkpoint_of("qwen2", vocab_size=384))
    shared = shared_vocabulary(target, wider)
    assert (shared.size, shared.tokens) == (320, 300)
    assert shared_vocabulary(wider, target) == shared
    assert shared_vocabulary(wider, None).size == 384


def test_a_plain_tokenizer_json_keeps_its_content(target):
    before = json.loads((target.folder / "tokenizer.json").read_text(encoding="utf-8"))
    after = json.loads(tokenizer_json(target))
    # An empty template adds nothing: transformers writes one where there is none.
    assert after.pop("post_processor")["special_tokens"] == {}
    assert before.pop("post_processor") is None
    assert after == before


def test_swapped_tokens_are_named(target, folder):
    def swap(content):
        vocab = content["model"]["vocab"]
        vocab["A"], vocab["B"] = vocab["B"], vocab["A"]

    edit(folder, swap)
    with pytest.raises(CheckpointError, match=r"id \d+ is 'A' in the target and 'B' in the draft"):
        shared_vocabulary(target, opened(folder))


def test_token_of_one_only_is_named(target, folder):
    write_tokenizer(folder, extra=["<tool>"])
    with pytest.raises(CheckpointError, match="id 300 is no token in the target and '<tool>' in"):
        shared_vocabulary(target, opened(folder))
    with pytest.raises(CheckpointError, match="301 and 300"):
        shared_vocabulary(target, opened(folder))


def test_special_tokens_count(target, folder):
    def rename(content):
        content["added_tokens"][2]["content"] = "<|person|>"
        vocab = content["model"]["vocab"]
        vocab["<|person|>"] = vocab.pop("<|user|>")

    edit(folder, rename)
    with pytest.raises(CheckpointError, match="id 2 is"):
        shared_vocabulary(target, opened(folder))


def test_merges_and_normaliser_do_not_matter(target, folder):
    def change(content):
        content["model"]["merges"].pop()
        content["normalizer"] = {"type": "NFC"}

    edit(folder, change)
    assert shared_vocabulary(target, opened(folder)).size == 320


def test_padding_names_of_gguf_do_not_matter(target, folder):
    write_tokenizer(folder, extra=[f"[PAD{i}]" for i in range(300, 320)])
    assert shared_vocabulary(target, opened(folder)).tokens == 300


def test_added_tokens_beyond_the_embedding_are_dropped(target, tmp_path):
    """Gemma 3's text checkpoints list an image token one beyond their embedding."""
    folder = random_checkpoint(tmp_path / "m", "llama", vocab_size=300)
    write_tokenizer(folder, extra=["<image>"])
    trimmed = Tokenizer.from_str(tokenizer_json(opened(folder)))
    assert trimmed.get_vocab_size() == 300
    assert shared_vocabulary(target, opened(folder)).size == 300


def test_ordinary_tokens_beyond_the_embedding_are_an_error(tmp_path):
    folder = random_checkpoint(tmp_path / "m", "llama", vocab_size=290)
    with pytest.raises(CheckpointError, match=r"ids up to 299.* 290 tokens"):
        tokenizer_json(opened(folder))


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00", '{"added_tokens": [{}]}'])
def test_damaged_tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer"):
        tokenizer_json(opened(folder))


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        tokenizer_json(opened(folder))


def test_old_format_is_converted(tmp_path):
    """GPT-2 and OPT checkpoints may hold vocab.json and merges.txt only."""
    folder = random_checkpoint(tmp_path / "gpt2", "gpt2")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    facts = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<bos>", "eos_token": "<eos>"}
    facts |= {"unk_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    converted = Tokenizer.from_str(tokenizer_json(opened(folder)))
    original = Tokenizer.from_str(json.dumps(content))
    text = "The capital of France is Paris."
    assert converted.encode(text).ids == original.encode(text).ids
    assert converted.token_to_id("<bos>") == BOS
    assert converted.token_to_id("<eos>") == EOS
