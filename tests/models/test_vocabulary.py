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
    with pytest.raises(CheckpointError, match=r"id \d+ is 'A' in the target, 'B' in the draft"):
        shared_vocabulary(target, opened(folder))


def test_tokens_of_one_side_only_are_never_proposed(target, folder):
    """The draft's row is there and untrained, or it proposes a token that the target cannot read."""
    write_tokenizer(folder, extra=["<tool>", "</tool>"])
    other = opened(folder)
    assert shared_vocabulary(target, target).unshared == {}
    assert shared_vocabulary(target, other).unshared == {
        300: "no token in the target, '<tool>' in the draft",
        301: "no token in the target, '</tool>' in the draft",
    }
    shared = shared_vocabulary(other, target)
    assert (shared.size, shared.tokens) == (320, 302)
    assert shared.unshared[300] == "'<tool>' in the target, no token in the draft"


def test_a_draft_without_rows_for_the_targets_tokens(target, tmp_path):
    narrow = random_checkpoint(tmp_path / "narrow", "llama", vocab_size=300)
    wide = random_checkpoint(tmp_path / "wide", "llama", vocab_size=384)
    write_tokenizer(wide, extra=[f"<extra {i}>" for i in range(30)])
    shared = shared_vocabulary(opened(wide), opened(narrow))
    assert (shared.size, list(shared.unshared)) == (330, list(range(300, 330)))
    turned = shared_vocabulary(opened(narrow), opened(wide))
    assert (turned.size, turned.unshared) == (300, {})


def test_renamed_special_tokens_are_never_proposed(target, folder):
    def rename(content):
        content["added_tokens"][2]["content"] = "<|person|>"
        vocab = content["model"]["vocab"]
        vocab["<|person|>"] = vocab.pop("<|user|>")

    edit(folder, rename)
    assert shared_vocabulary(target, opened(folder)).unshared == {
        2: "'<|user|>' in the target, '<|person|>' in the draft"
    }


@pytest.mark.parametrize("text", ["<reserved 7>", "[unused7]"])
def test_reserved_tokens_that_are_no_added_ones(folder, text):
    def rename(name):
        def change(content):
            vocab = content["model"]["vocab"]
            token = next(t for t, i in vocab.items() if i == 299)
            content["model"]["merges"] = [
                m for m in content["model"]["merges"] if "".join(m) != token
            ]
            vocab[name] = vocab.pop(token)

        return change

    other = shutil.copytree(folder, folder.with_name("other"))
    edit(folder, rename(text))
    edit(other, rename("<another>"))
    assert list(shared_vocabulary(opened(folder), opened(other)).unshared) == [299]


@pytest.mark.parametrize("text", ["<0x0A>", "piece", "<piece"])
def test_ordinary_tokens_that_differ_are_refused(target, folder, text):
    def rename(content):
        vocab = content["model"]["vocab"]
        token = next(t for t, i in vocab.items() if i == 299)
        content["model"]["merges"] = [m for m in content["model"]["merges"] if "".join(m) != token]
        vocab[text] = vocab.pop(token)

    edit(folder, rename)
    with pytest.raises(CheckpointError, match=f"id 299 is .* in the target, '{text}' in the draft"):
        shared_vocabulary(target, opened(folder))


def test_a_draft_with_few_of_the_tokens_is_refused(target, tmp_path):
    folder = random_checkpoint(tmp_path / "m", "llama", vocab_size=300)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = {token: i for token, i in content["model"]["vocab"].items() if i < 140}
    content["model"] |= {"vocab": vocab, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"140 and 300 tokens, 140 the same"):
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
