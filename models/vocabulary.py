"""One vocabulary for draft and target: the text of the tokenizer, and the comparison of two.

A draft proposes token ids, so each id must mean the same text to both models. How a text is cut
into tokens (merges, normaliser, pre-tokenizer) may differ: only the target's tokenizer is ever run,
and it goes into the bundle. Special ids, such as the end of a text, are the target's as well.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .hf import blaming, quiet, transformers_class


@dataclass(frozen=True)
class SharedVocabulary:
    """What draft and target have in common.

    Attributes:
        size: logits beyond this id are padding of one model or both, and are cut off or masked.
        tokens: entries of the tokenizer; all their ids are below `size`.
    """

    size: int
    tokens: int


def tokenizer_json(checkpoint: Checkpoint) -> str:
    """The checkpoint's fast tokenizer in the format of tokenizer.json.

    A tokenizer.json is taken as it is, except for added tokens whose id the model has no embedding
    for (Gemma 3's image token), which are left out. Other formats (GGUF, vocab.json with
    merges.txt, tokenizer.model) are converted by transformers.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, it cannot be converted, or it has
            ordinary tokens that the model has no embedding for.
    """
    file = checkpoint.folder / "tokenizer.json"
    if checkpoint.gguf_file is None and file.is_file():
        with blaming(file, "it cannot be read"):
            text = file.read_text(encoding="utf-8")
    else:
        text = _converted(checkpoint.folder, checkpoint.gguf_file)
    text = _without_excess(text, checkpoint)
    highest = max(_token_ids(text, checkpoint).values(), default=-1)
    if highest < 0:
        raise CheckpointError(f"{checkpoint.path}: its tokenizer is empty.")
    if highest >= checkpoint.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: its tokenizer has ids up to {highest}, but the model knows only "
            f"{checkpoint.vocab_size} tokens.",
            hint="The tokenizer belongs to another model, or the embedding was never resized.",
        )
    return text


def shared_vocabulary(target: Checkpoint, draft: Checkpoint | None) -> SharedVocabulary:
    """Check that every id means the same token to both models.

    The sizes of the models may differ, as they are often padded (151,936 and 152,064 in Qwen2.5).
    Without a draft, the vocabulary is the target's own.

    Raises:
        CheckpointError: the vocabularies differ; names the first difference.
    """
    ours = _token_ids(tokenizer_json(target), target)
    if draft is None:
        return SharedVocabulary(target.vocab_size, len(ours))
    theirs = _token_ids(tokenizer_json(draft), draft)
    if ours != theirs:
        raise CheckpointError(
            f"The draft {draft.name} and the target {target.name} have different vocabularies "
            f"({len(theirs)} and {len(ours)} tokens). First difference: "
            f"{_first_difference(ours, theirs)}.",
            hint="Take a draft of the same model family, or --draft none to draft from the text "
            "itself.",
        )
    return SharedVocabulary(min(target.vocab_size, draft.vocab_size), len(ours))


def _token_ids(text: str, checkpoint: Checkpoint) -> dict[str, int]:
    """Token to id, added and special tokens included."""
    from tokenizers import Tokenizer

    with blaming(checkpoint.path, "its tokenizer is damaged"):
        vocabulary: dict[str, int] = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    # GGUF files fill the padded end of the embedding with names of this form.
    return {token: i for token, i in vocabulary.items() if token != f"[PAD{i}]"}


def _first_difference(ours: dict[str, int], theirs: dict[str, int]) -> str:
    differing = {i for _, i in ours.items() ^ theirs.items()}
    first = min(differing)

    def at(ids: dict[str, int]) -> str:
        tokens = [repr(token) for token, i in ids.items() if i == first]
        return " and ".join(sorted(tokens)) or "no token"

    return f"id {first} is {at(ours)} in the target and {at(theirs)} in the draft"


@functools.lru_cache(maxsize=2)
def _converted(folder: Path, gguf_file: str | None) -> str:
    """Convert a tokenizer of another format; kept, as a GGUF file takes many seconds."""
    path = folder / gguf_file if gguf_file else folder
    settings: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    with quiet(), blaming(path, "it has no usable tokenizer"):
        tokenizer = transformers_class("AutoTokenizer").from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **settings
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"{path}: its tokenizer ({type(tokenizer).__name__}) exists only in Python and has no "
            "tokenizer.json.",
            hint="Take a checkpoint with a tokenizer.json.",
        )
    return str(backend.to_str())


def _without_excess(text: str, checkpoint: Checkpoint) -> str:
    """Drop added tokens beyond the embedding; the text itself where there are none."""
    with blaming(checkpoint.path, "its tokenizer is damaged"):
        content = json.loads(text)
        added = content.get("added_tokens") or []
        kept = [token for token in added if token["id"] < checkpoint.vocab_size]
    if len(kept) == len(added):
        return text
    return json.dumps({**content, "added_tokens": kept}, ensure_ascii=False)
