"""Small tokenizers of the three kinds that checkpoints have: byte-level, and two of SentencePiece."""

from __future__ import annotations

from pathlib import Path

from factories import write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HARD = "naïve café 你好, 世界! 👩‍👩‍👧 e\u0301a\u0308 \u202etfel 🇫🇷\n\ttab  two spaces"
SPECIALS = ["<unk>", "<s>", "</s>"]
WORDS = ["▁", "▁▁", "▁a", "a", "b", "▁world", "world", "!", "你", "▁好", "�", "▁�"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(folder: Path) -> Path:
    return write_tokenizer(folder, size=300)


def sentence_piece(folder: Path, kind: str) -> Path:
    """Build a tokenizer of the Llama 2 kind: words carry their space, bytes stand in for the rest."""
    spellings = [*SPECIALS, *BYTES, *WORDS]
    if kind == "unigram":
        scores = [(word, -1.0 - i / 100) for i, word in enumerate(spellings)]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        vocabulary = {word: i for i, word in enumerate(spellings)}
        merges = [("▁", "▁"), ("▁", "a"), ("▁", "好"), ("▁", "�")]
        merges = [pair for pair in merges if all(part in vocabulary for part in pair)]
        model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    tokenizer.add_special_tokens(SPECIALS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


KINDS = ("byte-level", "bpe", "unigram")


def made(folder: Path, kind: str) -> Path:
    """Write the tokenizer.json of one kind, and return its path."""
    return byte_level(folder) if kind == "byte-level" else sentence_piece(folder, kind)
