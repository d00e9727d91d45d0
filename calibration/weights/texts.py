"""Calibration texts as tokens: a file's, or the source's own answers to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ...export.weights.chosen_weights import read_file
from ...runtime.bundle.manifest import Manifest
from ...runtime.decoding.session import Session
from ...runtime.text.codec import TextCodec
from ..tasks.item import Task

WINDOW = 256
"""Tokens of a text that are read in one context, where the capacity allows."""

PROMPT_TOKENS = 48
"""Of a text, where prompts are cut from it."""


@dataclass(frozen=True)
class Text:
    """Tokens to be read.

    Attributes:
        tokens: at least two.
        scored_from: the first position whose prediction counts, at least 1.
    """

    tokens: tuple[int, ...]
    scored_from: int = 1

    @property
    def prompt(self) -> tuple[int, ...]:
        """What an output may follow: the part that is not scored, or the beginning."""
        end = self.scored_from if self.scored_from > 1 else min(PROMPT_TOKENS, len(self.tokens) - 1)
        return self.tokens[:end]


def read_texts(path: Path, codec: TextCodec, manifest: Manifest, limit: int) -> list[Text]:
    """Cut a file, plain text in UTF-8, into windows; see `cut_text`.

    Raises:
        UsageError: the file is missing, is not UTF-8, or holds too little.
    """
    return cut_text(read_file(path), str(path), codec, manifest, limit)


def cut_text(
    content: str, name: str, codec: TextCodec, manifest: Manifest, limit: int
) -> list[Text]:
    """Cut a text into windows of tokens, each with a context of its own.

    Args:
        content: the text.
        name: of the text, for errors.
        codec: the bundle's.
        manifest: the bundle's.
        limit: tokens to take at most.

    Raises:
        UsageError: it holds too little.
    """
    tokens = codec.encode(content) if content.strip() else []
    bos = manifest.generation.bos_token_id
    # Models are trained with their first token in front, so each window gets one.
    front = [] if bos is None else [bos]
    if tokens[:1] == front:
        tokens = tokens[1:]
    step = min(WINDOW, manifest.capacity) - len(front)
    cut = [tokens[i : i + step] for i in range(0, min(len(tokens), limit), step)]
    texts = [Text((*front, *part)) for part in cut if len(front) + len(part) > 1]
    if not texts:
        raise UsageError(f"{name} holds no text", hint="a few thousand words make steady figures")
    return texts


def answered(session: Session, tasks: Sequence[Task], limit: int) -> list[Text]:
    """Return the prompts of tasks with the answers that the source itself gives to them.

    Args:
        session: of the source.
        tasks: in the order that they are taken in.
        limit: tokens of answers to take at most.

    Raises:
        UsageError: no answer has a token.
    """
    texts: list[Text] = []
    for task in tasks:
        prompt = session.encode(task.prompt)
        stream = session.continue_tokens(prompt, max_tokens=task.max_tokens, num_draft_tokens=0)
        answer = stream.completion().tokens
        room = session.manifest.capacity - len(prompt)
        texts.append(Text((*prompt, *answer[:room]), len(prompt)))
        limit -= len(answer)
        if limit <= 0:
            break
    texts = [text for text in texts if len(text.tokens) > text.scored_from]
    if not texts:
        raise UsageError("the tasks' prompts leave no room for answers in this bundle's capacity")
    return texts
