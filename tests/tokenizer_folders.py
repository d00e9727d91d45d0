"""Random tokenizer folders, as fine-tunes leave them: what adds a token stands now here, now there.

`write_folder(folder, seed)` writes a checkpoint that `open_checkpoint` accepts (its weights are one
tensor) and returns what it drew. The same seed writes the same folder.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The capital of France is Paris, and the capital of Spain is Madrid.",
    "Add 12 and 30: 12 + 30 = 42. Then take 7 away: 42 - 7 = 35.",
    "def add(left, right):\n    return left + right\n",
    "don't  stop   here, it's fine\tand on\n\nwe go",
]
TEXTS = [
    "",
    " ",
    "hello",
    " hello  world ",
    "The capital of France is Paris.",
    "12 + 30 = 42\n\n\tdef add(left):",
    "don't stop, IT'S Fine",
    "Ünïcödé 漢字 \N{ROBOT FACE} e\u0301 ﬁ",
    "a<|turn_end|>b <|turn_end|> c",
    "<tool>x</tool> <s>y</s> <unk> <pad>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "[INST] word WORD [/INST] xwordx",
    "\u2581under \u2581 score",
]
ADDED = ["<|turn_end|>", "<tool>", "</tool>", "word", "[INST]", "<|🤖|>", "<extra one>"]
KINDS = ("byte_level", "metaspace", "gemma", "unigram", "wordlevel", "wordpiece")
# What a folder may call its tokenizer; None leaves the name out.
CLASSES = {
    "byte_level": (None, "PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer",
                   "GPTNeoXTokenizerFast", "LlamaTokenizerFast", "TokenizersBackend"),
    "metaspace": (None, "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"),
    "gemma": ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast"),
    "unigram": ("PreTrainedTokenizerFast", "T5TokenizerFast"),
    "wordlevel": ("PreTrainedTokenizerFast",),
    "wordpiece": ("PreTrainedTokenizerFast", "BertTokenizer"),
}  # fmt: skip
MODEL_TYPES = {
    "byte_level": ("llama", "qwen2", "gpt2", "gpt_neox", "opt", "smollm3", "phi"),
    "metaspace": ("llama", "mistral", "phi3"),
    "gemma": ("gemma2", "gemma3_text"),
    "unigram": ("llama",),
    "wordlevel": ("llama",),
    "wordpiece": ("llama",),
}
SIZES = {
    "hidden_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_folder(folder: Path, seed: int) -> dict[str, Any]:
    """Write a random checkpoint folder and return what was drawn, for messages."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    kind = rng.choice(KINDS)
    drawn: dict[str, Any] = {"seed": seed, "kind": kind}
    tokenizer, names = _tokenizer(kind, rng)
    vocab_size = tokenizer.get_vocab_size() + 12
    content = _added_in_json(tokenizer, names, rng)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    facts = _facts(folder, kind, names, Tokenizer.from_str(content), rng, drawn)
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
    drawn["facts"] = facts
    _write_model(folder, rng.choice(MODEL_TYPES[kind]), vocab_size, drawn)
    return drawn


def _tokenizer(kind: str, rng: random.Random) -> tuple[Tokenizer, dict[str, str]]:
    """Train a tokenizer of a kind; return it with the texts of its special tokens."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    if kind == "byte_level":
        names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    special = list(names.values())
    normalizer = _normalizer(rng)
    if kind == "byte_level":
        prefix = rng.random() < 0.3
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        if rng.random() < 0.3:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
            )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind in ("metaspace", "gemma"):
        fallback = [f"<0x{i:02X}>" for i in range(256)] if rng.random() < 0.8 else []
        tokenizer = Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=bool(fallback), fuse_unk=True)
        )
        scheme = rng.choice(["first", "always", "never"])
        if kind == "gemma":
            normalizer = normalizers.Replace(" ", "\u2581")
        elif rng.random() < 0.5:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        else:
            normalizer = normalizers.Sequence(
                [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=[*special, *fallback], show_progress=False
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "wordlevel":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=special, show_progress=False
        )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _post_processor(kind, names, tokenizer, rng)
    if rng.random() < 0.1:
        tokenizer.enable_truncation(5)
    if rng.random() < 0.1:
        tokenizer.enable_padding(length=32)
    return tokenizer, names


def _normalizer(rng: random.Random) -> Any:
    return rng.choice(
        [
            None,
            None,
            normalizers.NFC(),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
            normalizers.Strip(left=True, right=False),
        ]
    )


def _post_processor(
    kind: str, names: dict[str, str], tokenizer: Tokenizer, rng: random.Random
) -> Any:
    bos, eos = names["bos_token"], names["eos_token"]
    template = rng.choice([None, f"{bos} $A", f"$A {eos}", f"{bos} $A {eos}"])
    if template is None:
        return processors.ByteLevel(trim_offsets=False) if kind == "byte_level" else None
    special = [(text, tokenizer.token_to_id(text)) for text in (bos, eos) if text in template]
    return processors.TemplateProcessing(single=template, special_tokens=special)


def _added_token(text: str, rng: random.Random) -> AddedToken:
    return AddedToken(
        text,
        single_word=rng.random() < 0.2,
        lstrip=rng.random() < 0.2,
        rstrip=rng.random() < 0.2,
        normalized=rng.random() < 0.3,
        special=rng.random() < 0.5,
    )


def _added_in_json(tokenizer: Tokenizer, names: dict[str, str], rng: random.Random) -> str:
    """Add some tokens to tokenizer.json itself; return its text."""
    tokenizer.add_tokens([_added_token(text, rng) for text in ADDED if rng.random() < 0.25])
    text: str = tokenizer.to_str()
    if rng.random() < 0.15:  # old files list no added tokens but those of the model's vocabulary
        content = json.loads(text)
        known = content["model"]["vocab"]
        known = [row[0] for row in known] if isinstance(known, list) else known
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in known][:2]
        text = json.dumps(content, ensure_ascii=False)
    return text


def _facts(
    folder: Path,
    kind: str,
    names: dict[str, str],
    tokenizer: Tokenizer,
    rng: random.Random,
    drawn: dict[str, Any],
) -> dict[str, Any]:
    """Draw tokenizer_config.json, and write the other small files."""
    facts: dict[str, Any] = {}
    chosen = rng.choice(CLASSES[kind])
    if chosen is not None:
        facts["tokenizer_class"] = chosen
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"):
        if rng.random() < 0.3:
            facts[key] = rng.random() < 0.5
    if rng.random() < 0.3:
        facts["clean_up_tokenization_spaces"] = rng.random() < 0.5
    if rng.random() < 0.05:
        facts["split_special_tokens"] = True
    special_map: dict[str, Any] = {}
    for role, text in names.items():
        place = rng.choice([facts, facts, special_map, None])
        if place is not None:
            place[role] = text
            if rng.random() < 0.2:
                flags = {flag: rng.random() < 0.2 for flag in ("lstrip", "rstrip", "normalized")}
                kind_of = {"__type": "AddedToken"} if place is facts else {}
                place[role] = {**kind_of, "content": text, **flags}
    known = tokenizer.get_vocab()
    fresh = [text for text in ADDED if text not in known]
    rng.shuffle(fresh)
    free = tokenizer.get_vocab_size()
    if fresh and rng.random() < 0.3:  # the end of a turn, as a fine-tune adds it
        facts["eos_token"] = fresh[0]
    if rng.random() < 0.3:
        facts["additional_special_tokens" if rng.random() < 0.5 else "extra_special_tokens"] = [
            fresh[-1] if fresh and rng.random() < 0.7 else "<tool>"
        ]
    declared = fresh[: rng.randint(0, 3)]
    if declared and rng.random() < 0.15:
        free += rng.randint(1, 3)  # ids with a gap, which no tokenizer can give
    where = rng.choice(["added_tokens_decoder", "added_tokens.json", "nowhere"])
    drawn["declared"] = (where, declared)
    if where == "added_tokens_decoder" and rng.random() < 0.8:
        old = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in json.loads(tokenizer.to_str())["added_tokens"]
        }
        new: dict[str, Any] = {}
        for i, text in enumerate(declared):
            token = _added_token(text, rng)
            kept = ("single_word", "lstrip", "rstrip", "normalized", "special")
            new[str(free + i)] = {"content": text} | {f: getattr(token, f) for f in kept}
        facts["added_tokens_decoder"] = old | new
    elif where == "added_tokens.json":
        ids = {text: free + i for i, text in enumerate(declared)}
        (folder / "added_tokens.json").write_text(json.dumps(ids), encoding="utf-8")
    if special_map:
        if rng.random() < 0.3:
            special_map["additional_special_tokens"] = fresh[:1] or ["<tool>"]
        text = json.dumps(special_map)
        (folder / "special_tokens_map.json").write_text(text, encoding="utf-8")
    drawn["map"] = special_map
    return facts


def _write_model(folder: Path, model_type: str, vocab_size: int, drawn: dict[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from cospec.models.families import FAMILIES

    drawn["model_type"] = model_type
    config = SIZES | {
        "model_type": model_type,
        "architectures": [FAMILIES[model_type]],
        "vocab_size": vocab_size,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"w": np.zeros(1, np.float32)}, folder / "model.safetensors")
