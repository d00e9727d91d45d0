"""The tokenizer of a bundle yields the very ids that transformers does, or there is no bundle."""

from __future__ import annotations

import collections
import io
import json
import shutil

import pytest
import tokenizer_folders
from factories import write_tokenizer
from gguf_files import CONTROL, SPM_TOKENS, byte_level, write_gguf
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from cospec.errors import CheckpointError, MissingExtraError
from cospec.models import fast_tokenizer
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.models.vocabulary import tokenizer_json
from cospec.runtime.text.codec import TextCodec

FOLDERS, PARTS = 200, 4


def opened(path):
    return open_checkpoint(resolve(str(path)))


def stored(path):
    """The tokenizer of the bundle that would be made of a checkpoint."""
    return Tokenizer.from_str(tokenizer_json(opened(path)))


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        tokenizer_json(opened(path))
    return str(caught.value)


# Any folder.


def ids(tokenizer, text, special):
    """The ids of a text, or that it has none: a vocabulary may lack its unknown token."""
    try:
        found = tokenizer.encode(text, add_special_tokens=special)
    except Exception:
        return "fails"
    return found.ids if isinstance(found, Encoding) else found


def outcome(folder, drawn):
    """Compare all texts; return "equal", or why the export refuses the folder."""
    theirs = broken = None
    try:
        theirs = AutoTokenizer.from_pretrained(folder)
    except BaseException as error:  # a panic of tokenizers is no Exception
        broken = error
    try:
        text = tokenizer_json(opened(folder))
    except CheckpointError as error:
        return "split_special_tokens" if "split_special" in error.message else "ids with a gap"
    assert broken is None, f"transformers refuses {drawn}: {broken}"
    (folder / "stored.json").write_text(text, encoding="utf-8")
    ours = TextCodec(folder / "stored.json", None).tokenizer
    for text in tokenizer_folders.TEXTS:
        for special in (True, False):
            assert ids(ours, text, special) == ids(theirs, text, special), (text, drawn)
    return "equal"


@pytest.mark.parametrize("part", range(PARTS))
def test_random_folders_yield_the_ids_of_transformers(part, tmp_path):
    outcomes = collections.Counter()
    for seed in range(part, FOLDERS, PARTS):
        folder = tmp_path / str(seed)
        outcomes[outcome(folder, tokenizer_folders.write_folder(folder, seed))] += 1
        shutil.rmtree(folder)
    print(dict(outcomes))
    assert sum(outcomes.values()) == FOLDERS / PARTS
    assert outcomes["equal"] >= FOLDERS / PARTS * 0.8


# Tokens that stand in one of the small files only.

TURN = "<|turn_end|>"
FLAGS = {"special": True, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture
def folder(checkpoint_of, tmp_path):
    """A llama checkpoint with 300 tokens and an embedding for 320, to be changed."""
    return shutil.copytree(checkpoint_of("llama"), tmp_path / "model")


def edit(file, **changes):
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": TURN, **FLAGS}}}),
        ("tokenizer_config.json", {"eos_token": TURN}),
        ("tokenizer_config.json", {"extra_special_tokens": [TURN]}),
        ("tokenizer_config.json", {"additional_special_tokens": [TURN]}),
        ("added_tokens.json", {TURN: 300}),
        ("special_tokens_map.json", {"sep_token": TURN}),
        ("special_tokens_map.json", {"additional_special_tokens": [TURN]}),
    ],
)
def test_a_token_of_one_small_file_is_one_token(folder, file, content):
    edit(folder / file, **content)
    tokenizer = stored(folder)
    assert tokenizer.token_to_id(TURN) == 300
    text = f"The capital{TURN}of France"
    assert 300 in tokenizer.encode(text).ids
    assert tokenizer.encode(text).ids == AutoTokenizer.from_pretrained(folder).encode(text)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_an_id_that_no_tokenizer_can_give_is_refused(folder, file):
    content = {TURN: 305}
    if file == "tokenizer_config.json":
        content = {"added_tokens_decoder": {"305": {"content": TURN, **FLAGS}}}
    edit(folder / file, **content)
    text = refusal(folder)
    assert file in text
    assert f"'{TURN}' has the id 305 there, but 300" in text


def test_flags_that_no_tokenizer_json_holds_are_refused(folder):
    edit(folder / "tokenizer_config.json", split_special_tokens=True)
    assert "split_special_tokens" in refusal(folder)


def test_code_of_a_checkpoint_is_never_run(folder):
    (folder / "tokenization_x.py").write_text("raise SystemExit('ran foreign code')")
    before = tokenizer_json(opened(folder))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_x.T"]})
    assert tokenizer_json(opened(folder)) == before


def test_a_panic_of_the_library_is_our_error(folder):
    edit(
        folder / "tokenizer.json",
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    )
    assert "tokenizer" in refusal(folder)


# Only tokenizer.model, as older Llama and Mistral fine-tunes come.


@pytest.fixture
def sentencepiece_only(folder):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tokenizer_folders.CORPUS * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=312,
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    facts = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_sentencepiece_alone_is_converted(sentencepiece_only):
    import sentencepiece

    tokenizer = stored(sentencepiece_only)
    processor = sentencepiece.SentencePieceProcessor(str(sentencepiece_only / "tokenizer.model"))
    for text in ("The capital of France is Paris.", "12 + 30 = 42", "Ünïcödé 漢字"):
        assert tokenizer.encode(text).ids == [1, *processor.encode(text)]


@pytest.mark.parametrize("missing", ["sentencepiece", "tiktoken"])
def test_a_missing_package_is_named(sentencepiece_only, missing, monkeypatch):
    monkeypatch.setattr(fast_tokenizer, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(MissingExtraError, match=f"package '{missing}'") as caught:
        tokenizer_json(opened(sentencepiece_only))
    assert caught.value.hint == 'pip install "cospec[export]"'


# GGUF: what the file says of its tokenizer, and the conversion of transformers leaves out.


def spm(tmp_path, **settings):
    return write_gguf(
        tmp_path / "m.gguf", SPM_TOKENS, ggml__bos_token_id=1, ggml__eos_token_id=2, **settings
    )


def bpe(tmp_path, pre, **settings):
    tokens = byte_level(("<bos>", CONTROL), ("<eos>", CONTROL), ("12", 1))
    return write_gguf(
        tmp_path / "m.gguf",
        tokens,
        kind="gpt2",
        merges=["a b", "1 2"],
        ggml__bos_token_id=256,
        ggml__eos_token_id=257,
        ggml__pre=pre,
        **settings,
    )


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3", "gpt2", "qwen2"])
def test_gguf_tokenizers_are_those_of_transformers(tmp_path, kind):
    if kind in ("gpt2", "qwen2"):
        file = bpe(tmp_path, "qwen2", architecture=kind, ggml__add_bos_token=kind == "qwen2")
    else:
        file = spm(tmp_path, architecture=kind)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ours = opened(file).tokenizer
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map


def test_gguf_files_do_not_read_what_lies_beside_them(tmp_path):
    """transformers prefers a tokenizer.json in the folder, whichever model it belongs to."""
    file = spm(tmp_path)
    alone = tokenizer_json(opened(file))
    write_tokenizer(tmp_path, size=260)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "a"}')
    assert tokenizer_json(opened(file)) == alone
    assert opened(file).eos_ids == (2,)


@pytest.mark.parametrize(("wanted", "first"), [(None, "\u2581a"), (True, "\u2581a"), (False, "ab")])
def test_gguf_space_prefix(tmp_path, wanted, first):
    tokenizer = stored(spm(tmp_path, ggml__add_space_prefix=wanted, ggml__add_bos_token=False))
    encoding = tokenizer.encode("ab c")
    assert encoding.tokens[0] == first
    assert tokenizer.decode(encoding.ids) == "ab c"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True, False])
def test_gguf_begin_and_end(tmp_path, kind, bos, eos):
    settings = {"ggml__add_bos_token": bos, "ggml__add_eos_token": eos}
    file = spm(tmp_path, **settings) if kind == "llama" else bpe(tmp_path, "gpt-2", **settings)
    begin, end = (1, 2) if kind == "llama" else (256, 257)
    found = stored(file).encode("ab").ids
    # A sentencepiece vocabulary begins a text unless the file says otherwise.
    assert (found[0] == begin) == (bos if bos is not None else kind == "llama")
    assert (found[-1] == end) == bool(eos)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("remove_extra_whitespaces", True),
        ("add_sep_token", True),
        ("precompiled_charsmap", [1, 2, 3]),
        ("normalizer.lowercase", True),
        ("suppress_tokens", [5]),
    ],
)
def test_gguf_settings_that_cannot_be_honoured_are_named(tmp_path, key, value):
    file = spm(tmp_path, **{f"ggml__{key}": value})
    assert f"tokenizer.ggml.{key} is" in refusal(file)


def test_gguf_settings_that_are_off_do_not_matter(tmp_path):
    file = spm(tmp_path, ggml__remove_extra_whitespaces=False, ggml__add_sep_token=False)
    assert stored(file).encode("ab").ids[0] == 1


def test_gguf_space_prefix_of_a_byte_level_vocabulary_is_refused(tmp_path):
    assert "tokenizer.ggml.add_space_prefix is True" in refusal(
        bpe(tmp_path, "gpt-2", ggml__add_space_prefix=True)
    )


@pytest.mark.parametrize(
    ("pre", "digits"), [("gpt-2", ["12"]), ("qwen2", ["1", "2"]), ("smollm", ["1", "2"])]
)
def test_gguf_splits_numbers_as_the_file_says(tmp_path, pre, digits):
    assert stored(bpe(tmp_path, pre)).encode("12").tokens == digits


def test_gguf_split_that_is_unknown_is_refused(tmp_path):
    assert "tokenizer.ggml.pre is deepseek-llm" in refusal(bpe(tmp_path, "deepseek-llm"))
