"""Texts and bytes of single tokens: joined, they are the text."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cospec.runtime.serve.token_text import TokenTexts
from cospec.runtime.text.codec import TextCodec

TEXT = "Añ 1 € 猫😀 done"


@pytest.fixture
def byte_fallback(tmp_path):
    """A tokenizer as SentencePiece makes them: spaces in front of words, bytes for the rest."""
    vocab = {"<unk>": 0, "▁": 1, "▁done": 2, "A": 3, "1": 4, "é": 5}
    vocab |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<end>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return TextCodec(path, None)


def test_bytes_of_a_byte_level_vocabulary_join_to_the_text(session):
    texts = TokenTexts(session.codec)
    tokens = [
        token for token in session.codec.encode(TEXT) if token not in session.protected_tokens
    ]
    assert b"".join(bytes(texts.spell(token)[1]) for token in tokens).decode() == TEXT
    halves = [texts.spell(token) for token in tokens if texts.spell(token)[0].startswith("\\x")]
    assert halves, "the text should have characters of several tokens"
    assert all(text == "".join(f"\\x{byte:02x}" for byte in data) for text, data in halves)


def test_a_vocabulary_with_spaces_and_byte_tokens(byte_fallback):
    texts = TokenTexts(byte_fallback)
    vocab = byte_fallback.tokenizer.get_vocab()
    assert texts.spell(vocab["▁done"]) == (" done", tuple(b" done"))
    assert texts.spell(vocab["é"]) == ("é", (0xC3, 0xA9))
    assert texts.spell(vocab["<0x41>"]) == ("A", (0x41,))
    assert texts.spell(vocab["<0xE2>"]) == ("\\xe2", (0xE2,))
    assert texts.spell(vocab["<end>"])[0] == "<end>"
    assert texts.spell(5000) == ("", ())
