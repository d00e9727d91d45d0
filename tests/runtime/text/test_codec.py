"""Text to tokens: what a hostile or damaged tokenizer can do, and how long a text may be."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from factories import CHAT_TEMPLATE
from text_tokenizers import HARD, KINDS, byte_level, made
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from cospec.errors import BundleError, PromptError, PromptTooLongError, UsageError
from cospec.runtime.text.chat_format import ChatFormat
from cospec.runtime.text.codec import TextCodec

HELLO = [{"role": "user", "content": "hello"}]


def with_template(tokenizer: Path, source: str, **special: str) -> TextCodec:
    path = tokenizer.parent / "chat.json"
    path.write_text(ChatFormat({"default": source}, special).to_json(), encoding="utf-8")
    return TextCodec(tokenizer, path)


def edited(tokenizer: Path, **parts: Any) -> Path:
    """Change parts of a tokenizer.json as an attacker would, past the checks of the library."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    tokenizer.write_text(json.dumps({**content, **parts}), encoding="utf-8")
    return tokenizer


def test_truncation_and_padding_of_a_tokenizer_file_do_not_touch_prompts(tmp_path):
    path = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(path))
    assert TextCodec(path, None).decode(TextCodec(path, None).encode(HARD)) == HARD


def test_special_tokens_that_the_tokenizer_adds_come_with_text_but_not_with_chats(tmp_path):
    path = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.save(str(path))
    codec = with_template(path, "{{ bos_token }}{{ messages[0].content }}", bos_token="<bos>")
    plain = codec.encode("hi")
    assert plain.count(0) == 1
    assert codec.encode_chat([{"role": "user", "content": "hi"}]) == plain
    assert codec.encode_rendered("<bos>hi") == plain


def test_a_chat_has_the_tokens_of_its_turns_and_opens_the_answer(tmp_path):
    codec = with_template(byte_level(tmp_path), CHAT_TEMPLATE, bos_token="<bos>")
    assert codec.has_chat_template
    user, assistant = 2, 3
    tokens = codec.encode_chat([*HELLO, {"role": "assistant", "content": "x"}, *HELLO])
    hello = [user, *codec.encode("hello")]
    assert tokens == [0, *hello, assistant, *codec.encode("x"), *hello, assistant]


def test_without_a_template_messages_are_refused(tmp_path):
    codec = TextCodec(byte_level(tmp_path), None)
    assert not codec.has_chat_template
    with pytest.raises(UsageError, match="no chat template") as caught:
        codec.encode_chat(HELLO)
    assert "plain text" in caught.value.hint


@pytest.mark.parametrize(
    "contents", [b"", b"garbage", b"{}", b'{"model": {"type": "no"}}', b"\xff"]
)
def test_a_tokenizer_that_cannot_be_used(tmp_path, contents):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(contents)
    with pytest.raises(BundleError, match="cannot be used") as caught:
        TextCodec(path, None)
    assert str(path) in caught.value.message
    assert "export the bundle again" in caught.value.hint


@pytest.mark.parametrize(
    "charsmap", [b"", b"\0\0", b"\0\0\0", b"\xff\xff\xff\xff", b"\x03\0\0\0abc"]
)
def test_a_character_map_that_would_end_the_process(tmp_path, charsmap):
    encoded = base64.b64encode(charsmap).decode()
    path = edited(
        byte_level(tmp_path), normalizer={"type": "Precompiled", "precompiled_charsmap": encoded}
    )
    with pytest.raises(BundleError, match="cannot be used"):
        TextCodec(path, None)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize("pattern", [{"String": "2"}, {"Regex": "x*"}])
def test_steps_that_lengthen_a_text_without_bound(tmp_path, part, pattern):
    step = {"type": "Replace", "pattern": pattern, "content": "22"}
    steps = {"type": "Sequence", f"{part}s": [step] * 60}
    with pytest.raises(BundleError, match="lengthen a text"):
        TextCodec(edited(byte_level(tmp_path), **{part: steps}), None)


def test_a_pattern_that_never_ends_is_a_refused_prompt(tmp_path):
    split = {
        "type": "Split",
        "pattern": {"Regex": "(x+x+)+y|(.+.+)+zz"},
        "behavior": "Isolated",
        "invert": False,
    }
    codec = TextCodec(edited(byte_level(tmp_path), pre_tokenizer=split), None)
    with pytest.raises(PromptError, match="tokenizer cannot read this prompt"):
        codec.encode("x" * 5000)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]},
        {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "<none>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    ],
)
def test_a_model_without_a_token_for_what_it_does_not_know(tmp_path, model):
    path = edited(
        byte_level(tmp_path), model=model, added_tokens=[], pre_tokenizer=None, post_processor=None
    )
    codec = TextCodec(path, None)
    with pytest.raises(PromptError, match="tokenizer cannot read this prompt"):
        codec.encode("zzz")


@pytest.mark.parametrize("tokens", [[-1], [1 << 40], [1 << 70], ["x"]])
def test_numbers_that_are_no_tokens_have_no_text(tmp_path, tokens):
    with pytest.raises(UsageError, match="no text"):
        TextCodec(byte_level(tmp_path), None).decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_no_unicode(tmp_path, kind):
    with pytest.raises(PromptError, match="not valid Unicode"):
        TextCodec(made(tmp_path, kind), None).encode("a\udcff")


# ---- texts that cannot fit ------------------------------------------------------------------------


def bounded(path: Path, capacity: int, monkeypatch: pytest.MonkeyPatch) -> TextCodec:
    """Return a codec whose tokenizer must not be asked."""
    codec = TextCodec(path, None, capacity)
    monkeypatch.setattr(codec, "_tokenizer", None)
    return codec


@pytest.mark.parametrize("kind", ["byte-level", "bpe"])
def test_a_text_that_cannot_fit_is_never_tokenised(tmp_path, kind, monkeypatch):
    path = made(tmp_path, kind)
    longest = max(map(len, Tokenizer.from_file(str(path)).get_vocab()))
    codec = bounded(path, 10, monkeypatch)
    with pytest.raises(
        PromptTooLongError, match="at least 11 tokens, this bundle holds 10"
    ) as caught:
        codec.encode("x" * (10 * longest + 1))
    assert "--capacity" in caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_fits_is_never_refused(tmp_path, kind):
    """The longest token over and over is the longest text of so many tokens."""
    path = made(tmp_path, kind)
    vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    spelling = max(vocabulary, key=len)
    codec = TextCodec(path, None, 50)
    assert codec.encode(spelling * 50)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Replace("  ", ""),
        normalizers.Strip(),
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace("aaaa", "b")]),
        normalizers.StripAccents(),
    ],
)
def test_normalisers_may_shorten_a_text(tmp_path, normalizer):
    path = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizer
    tokenizer.save(str(path))
    shrinking = ["  " * 900, "a" * 900, "ω\u0314\u0342\u0345" * 200, "e\u0301" * 400]
    capacity = max(len(tokenizer.encode(normalizer.normalize_str(text)).ids) for text in shrinking)
    for text in shrinking:
        ids = tokenizer.encode(text).ids
        assert TextCodec(path, None, max(capacity, len(ids))).encode(text) == ids


def test_added_tokens_that_take_the_spaces_beside_them(tmp_path):
    path = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    tokenizer.save(str(path))
    text = "<|end|>" + " " * 5000
    assert len(TextCodec(path, None, 10).encode(text)) == 1


def test_unknown_words_that_share_a_token(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextCodec(tmp_path / "tokenizer.json", None, 10).encode("x" * 100_000) == [0]


def test_other_threads_run_while_a_long_text_is_tokenised(tmp_path):
    codec = TextCodec(byte_level(tmp_path), None)
    text = HARD * 20_000
    turns, done = [0], threading.Event()

    def count() -> None:
        while not done.wait(0.001):
            turns[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    started = time.perf_counter()
    codec.encode(text)
    seconds = time.perf_counter() - started
    done.set()
    thread.join()
    # Without the lock released, the other thread gets a turn at the beginning and at the end.
    assert turns[0] > 5 + seconds * 20
