"""The tokenizer of a checkpoint: loaded by transformers, stored as one tokenizer.json.

What a checkpoint says about its tokens is spread over up to six files, and some classes of transformers
rebuild the tokenizer from its vocabulary. So transformers itself loads it, and the bundle gets the
tokenizer that it ends with. The same object is the reference of the text gate.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from ..errors import CheckpointError, MissingExtraError
from . import gguf
from .hf import blaming, quiet, transformers_class
from .metadata import read_json

SENTENCEPIECE = "tokenizer.model"
_NOT_IN_JSON = "which tokenizer.json cannot hold"

_TOKENIZER = "tokenizer.ggml."
# What llama.cpp does and transformers' conversion leaves out: refused unless absent, false or empty.
_TOKENIZER_EXTRAS = (
    "remove_extra_whitespaces",
    "add_sep_token",
    "precompiled_charsmap",
    "normalizer.lowercase",
    "normalizer.strip_accents",
    "suppress_tokens",
)
# Values of `pre` that split a text as GPT-2 does, which is what the conversion falls back to.
_SPLIT_AS_GPT2 = (
    "",
    "default",
    "gpt-2",
    "phi-2",
    "gigachat",
    "a.x-4.0",
    "mellum",
    "exaone4",
    "olmo",
)
# Values of `pre` that split digits off first; the conversion does not know them.
_SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def load_tokenizer(path: Path, config: Any) -> Any:
    """Return transformers' tokenizer of a Hugging Face folder or a GGUF file.

    Args:
        path: of the folder or the file.
        config: transformers' configuration; only looked at for a GGUF file.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, it exists only in Python, or the files
            contradict one another.
        MissingExtraError: a package that reads this kind of file is not installed.
    """
    is_file = path.is_file()
    if not is_file:
        _check_packages(path)
    with quiet(), blaming(path, "it has no usable tokenizer"):
        if is_file:
            # As AutoTokenizer does, which would prefer a tokenizer.json that lies beside the file, and
            # reads the file's header again for half of its time.
            mapping = transformers_class("TOKENIZER_MAPPING")
            kind = mapping.get(type(config), transformers_class("PreTrainedTokenizerFast"))
            tokenizer = kind(gguf_file=path.name, name_or_path=str(path.parent), is_local=True)
        else:
            tokenizer = transformers_class("AutoTokenizer").from_pretrained(
                path,
                trust_remote_code=False,
                local_files_only=True,
                # Not the tokenizer of the package mistral-common, which exists only in Python.
                mistral_format=False,
            )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise CheckpointError(
            f"{path}: its tokenizer ({type(tokenizer).__name__}) exists only in Python, "
            f"{_NOT_IN_JSON}.",
            hint="Use a checkpoint with a tokenizer.json.",
        )
    if tokenizer.split_special_tokens:
        raise CheckpointError(
            f"{path}: tokenizer_config.json sets split_special_tokens, {_NOT_IN_JSON}.",
            hint="Remove it from tokenizer_config.json if special tokens are to be read as tokens.",
        )
    if is_file:
        _restore_gguf_settings(path, gguf.read_header(path), tokenizer)
    else:
        _check_declared_ids(path, tokenizer)
        if tokenizer.chat_template is None:  # a wrapper keeps it where processors look for it
            legacy = read_json(path / "chat_template.json", required=False)
            tokenizer.chat_template = legacy.get("chat_template")
    return tokenizer


def stored(tokenizer: Any, vocab_size: int, path: Path) -> str:
    """Return the tokenizer in the format of tokenizer.json.

    Added tokens that the model has no embedding for (Gemma 3's image token) are left out.

    Args:
        tokenizer: from `load_tokenizer`.
        vocab_size: rows of the model's embedding.
        path: of the checkpoint, for errors.

    Raises:
        CheckpointError: the tokenizer is empty, has ordinary tokens that the model has no embedding
            for, or reads differently once it is stored.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    with blaming(path, "its tokenizer cannot be stored"):
        text = str(backend.to_str())
        content = json.loads(text)
        kept = [token for token in content["added_tokens"] if token["id"] < vocab_size]
        if len(kept) < len(content["added_tokens"]):
            text = json.dumps({**content, "added_tokens": kept}, ensure_ascii=False)
        vocabulary = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
        expected = {t: i for t, i in backend.get_vocab(True).items() if i < vocab_size}
    highest = max(vocabulary.values(), default=-1)
    if highest < 0:
        raise CheckpointError(f"{path}: its tokenizer is empty.")
    if highest >= vocab_size:
        raise CheckpointError(
            f"{path}: its tokenizer has ids up to {highest}, but the model knows only {vocab_size} "
            "tokens.",
            hint="The tokenizer belongs to another model, or the embedding was never resized.",
        )
    if vocabulary != expected:
        changed = sorted(dict(vocabulary.items() ^ expected.items()))
        raise CheckpointError(
            f"{path}: {len(changed)} tokens change when its tokenizer is stored, among them "
            f"{changed[0]!r}.",
            hint="Remove the added token from the checkpoint's files, or report the checkpoint.",
        )
    return text


def _check_packages(folder: Path) -> None:
    """Name the right package where only sentencepiece's or tiktoken's own file holds the tokenizer."""
    if not (folder / SENTENCEPIECE).is_file() or (folder / "tokenizer.json").is_file():
        return
    for package in (
        "sentencepiece",
        "tiktoken",
    ):  # only the content tells which of the two it needs
        if find_spec(package) is None:
            raise MissingExtraError(package, "export", f"Reading {SENTENCEPIECE}")


def _check_declared_ids(folder: Path, tokenizer: Any) -> None:
    """Refuse an added token that transformers gives another id than the checkpoint's files do."""
    config = read_json(folder / "tokenizer_config.json", required=False)
    legacy = read_json(folder / "added_tokens.json", required=False)
    decoder = config.get("added_tokens_decoder")
    declared = [("added_tokens.json", text, index) for text, index in legacy.items()]
    if isinstance(decoder, dict):
        declared += [
            ("tokenizer_config.json", token["content"], int(index))
            for index, token in decoder.items()
        ]
    vocabulary = tokenizer.get_vocab()
    for file, text, index in declared:
        if vocabulary.get(text) != index:
            raise CheckpointError(
                f"{folder / file}: the token {text!r} has the id {index} there, but "
                f"{vocabulary.get(text)} in the tokenizer that transformers makes of the folder.",
                hint="The files belong to different versions of the checkpoint; download them again.",
            )


def _restore_gguf_settings(file: Path, header: gguf.GgufHeader, tokenizer: Any) -> None:
    """Apply what the file says about its tokenizer and the conversion leaves out; in place.

    Args:
        file: for errors.
        header: of the file.
        tokenizer: of transformers, made from the file.

    Raises:
        CheckpointError: a setting that cannot be honoured; names it.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    def refuse(key: str) -> NoReturn:
        value = header.metadata[_TOKENIZER + key]
        raise CheckpointError(
            f"{file}: {_TOKENIZER}{key} is {str(value)[:60]}, which the GGUF conversion of "
            "transformers does not honour: texts would be split into other tokens.",
            hint="Use the Hugging Face checkpoint of this model.",
        )

    prefix = "tokenizer.chat_template."
    named = {k[len(prefix) :]: v for k, v in header.metadata.items() if k.startswith(prefix)}
    if named:
        default = {"default": tokenizer.chat_template} if tokenizer.chat_template else {}
        tokenizer.chat_template = {**named, **default}
    settings = {key: header.metadata.get(_TOKENIZER + key) for key in _TOKENIZER_EXTRAS}
    for key, value in settings.items():
        if value:
            refuse(key)
    backend = tokenizer.backend_tokenizer
    kind = header.metadata.get(f"{_TOKENIZER}model")
    split = header.metadata.get(f"{_TOKENIZER}pre", "")
    if kind == "gpt2" and split in _SPLIT_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    elif kind == "gpt2" and split not in (*_SPLIT_AS_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        refuse("pre")
    wanted = header.metadata.get(f"{_TOKENIZER}add_space_prefix")
    if wanted is None or wanted == _adds_space(backend):
        return
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        refuse("add_space_prefix")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="\u2581", prepend_scheme="first" if wanted else "never", split=False
    )
    strip = [decoders.Strip(content=" ", left=1)] if wanted else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _adds_space(backend: Any) -> bool:
    """Whether a tokenizer puts a space in front of a text."""
    text = "a" if backend.normalizer is None else backend.normalizer.normalize_str("a")
    if backend.pre_tokenizer is not None:
        text = backend.pre_tokenizer.pre_tokenize_str(text)[0][0]
    return not text.startswith("a")
