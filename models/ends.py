"""The tokens that end an output, and which of the checkpoint's files name them.

The files of a checkpoint often disagree: a fine-tune names the end of a turn in tokenizer_config.json
and leaves the base model's end of text in config.json; many GGUF files name only one of the two. So
every file counts. Known spellings count as well, as in llama.cpp, with two differences:

- only special tokens count. An ordinary token that is spelled like an end is text.
- <|fim_pad|>, <|repo_name|> and <|file_sep|> do not count. A model that completes a repository writes
  them between files and continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SPELLINGS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<\N{FULLWIDTH VERTICAL LINE}end\u2581of\u2581sentence\N{FULLWIDTH VERTICAL LINE}>",
)
"""How end tokens are written by the models that llama.cpp knows."""

_HARMONY = {"<|return|>", "<|call|>"}
"""Where these two end an answer, <|end|> only ends a message inside it."""

BY_SPELLING = "known spelling"


@dataclass(frozen=True)
class EndToken:
    """One token that ends an output.

    Attributes:
        id: of the token.
        text: as the vocabulary spells it.
        sources: the files and keys that name it, or BY_SPELLING.
    """

    id: int
    text: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.text[:80]!r}: {', '.join(self.sources)}"


class NamesEnds(Protocol):
    """What is read of a checkpoint: see `Checkpoint`."""

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""

    @property
    def stated_ends(self) -> Sequence[tuple[str, int | None]]:
        """Ids that its files name, each with the file."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def default_end(self) -> int | None:
        """The family's default, if there is one."""


def end_tokens(checkpoint: NamesEnds) -> tuple[EndToken, ...]:
    """Return the tokens that end an output of the checkpoint, each once, those of the files first.

    Errors are those of `load_tokenizer`.
    """
    tokenizer = checkpoint.tokenizer
    named = [*checkpoint.stated_ends, ("the tokenizer's eos_token", tokenizer.eos_token_id)]
    added = tokenizer.added_tokens_decoder
    special = {token.content: index for index, token in added.items() if token.special}
    inside = {"<|end|>"} if special.keys() >= _HARMONY else set()
    named += [(BY_SPELLING, special[text]) for text in SPELLINGS if text in special.keys() - inside]
    sources: dict[int, list[str]] = {}
    for source, index in named:
        if isinstance(index, int) and 0 <= index < checkpoint.vocab_size:
            sources.setdefault(index, []).append(source)
    if not sources and checkpoint.default_end is not None:
        sources[checkpoint.default_end] = ["transformers' default for the family"]
    texts = dict(zip(sources, tokenizer.convert_ids_to_tokens(list(sources)), strict=True))
    return tuple(
        EndToken(index, texts[index] or "", tuple(where)) for index, where in sources.items()
    )


def stated(source: str, value: Any) -> list[tuple[str, int]]:
    """Return what a file's `eos_token_id` names (one id, several or none), each with the source."""
    ids = value if isinstance(value, list) else [value]
    return [(source, index) for index in ids if isinstance(index, int)]
