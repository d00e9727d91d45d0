"""One vocabulary for draft and target: the text of the tokenizer, and the comparison of two.

A draft proposes token ids, so an id must mean the same text to both models. How a text is cut into
tokens (merges, normaliser, pre-tokenizer) may differ: only the target's tokenizer is ever run, and it
goes into the bundle. Special ids, such as the end of a text, are the target's as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import CheckpointError
from ..runtime.text.detokenizer import BYTE_TOKEN
from .checkpoint import Checkpoint
from .fast_tokenizer import stored
from .hf import blaming

SMALLEST_SHARE = 0.5
"""Share of the target's tokens that a draft must have in common with it."""


@dataclass(frozen=True)
class SharedVocabulary:
    """What draft and target have in common.

    Attributes:
        size: width of the logits of both; ids from here on are padding and are cut off.
        tokens: entries of the target's tokenizer; all their ids are below `size`.
        unshared: ids below `size` that the draft must not propose, as they are tokens of one model
            only or of different texts; each with the reason.
    """

    size: int
    tokens: int
    unshared: dict[int, str] = field(default_factory=dict)


def tokenizer_json(checkpoint: Checkpoint) -> str:
    """Return the checkpoint's tokenizer in the format of tokenizer.json.

    Errors are those of `load_tokenizer` and `stored`.
    """
    return stored(checkpoint.tokenizer, checkpoint.vocab_size, checkpoint.path)


def shared_vocabulary(target: Checkpoint, draft: Checkpoint | None) -> SharedVocabulary:
    """Compare the vocabularies of two models, id by id.

    The widths of the models may differ, as they are often padded (151,936 and 152,064 in Qwen2.5). One
    vocabulary may have more tokens than the other, and added or reserved tokens (<|...|>, [unused7])
    may differ at the same id. Without a draft, the vocabulary is the target's own.

    Raises:
        CheckpointError: an ordinary token differs, or too few tokens are the same; names the first
            difference.
    """
    ours = _tokens(target)
    if draft is None:
        return SharedVocabulary(target.vocab_size, len(ours))
    theirs = _tokens(draft)
    size = max(min(target.vocab_size, draft.vocab_size), max(ours) + 1)
    differing = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    unshared = {i: f"{_named(ours, i, 'target')}, {_named(theirs, i, 'draft')}" for i in differing}
    in_both = [i for i in differing if i in ours and i in theirs]
    clashes = [
        i
        for i in in_both
        if not (_is_reserved(target, i, ours[i]) and _is_reserved(draft, i, theirs[i]))
    ]
    same = len(ours.items() & theirs.items())
    if clashes or same < SMALLEST_SHARE * len(ours):
        first = (clashes or differing)[0]
        raise CheckpointError(
            f"The draft {draft.name} and the target {target.name} have different vocabularies "
            f"({len(theirs)} and {len(ours)} tokens, {same} the same). First difference: id {first} is "
            f"{unshared[first]}.",
            hint="Use a draft of the same model family, or --draft none to draft from the text itself.",
        )
    return SharedVocabulary(size, len(ours), {i: why for i, why in unshared.items() if i < size})


def _tokens(checkpoint: Checkpoint) -> dict[int, str]:
    """Return the text of each id, added and special tokens included."""
    from tokenizers import Tokenizer

    text = tokenizer_json(checkpoint)
    with blaming(checkpoint.path, "its tokenizer is damaged"):
        vocabulary: dict[str, int] = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    # GGUF files fill the padded end of the embedding with names of this form.
    return {i: token for token, i in vocabulary.items() if token != f"[PAD{i}]"}


def _is_reserved(checkpoint: Checkpoint, index: int, text: str) -> bool:
    """Whether a token is an added or a reserved one, rather than a piece of text."""
    bracketed = text[:1] + text[-1:] in ("<>", "[]") and not BYTE_TOKEN.fullmatch(text)
    return bracketed or index in checkpoint.tokenizer.added_tokens_decoder


def _named(tokens: dict[int, str], index: int, role: str) -> str:
    text = repr(tokens[index][:80]) if index in tokens else "no token"
    return f"{text} in the {role}"
