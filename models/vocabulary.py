"""One vocabulary for draft and target: the text of the tokenizer, and the comparison of two.

A draft proposes token ids, so each id must mean the same text to both models. How a text is cut
into tokens (merges, normaliser, pre-tokenizer) may differ: only the target's tokenizer is ever run,
and it goes into the bundle. Special ids, such as the end of a text, are the target's as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .fast_tokenizer import stored
from .hf import blaming


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

    Errors are those of `load_tokenizer` and `stored`.
    """
    return stored(checkpoint.tokenizer, checkpoint.vocab_size, checkpoint.path)


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
