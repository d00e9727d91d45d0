"""What the loop asks of a drafter, and what a drafter may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Protocol, runtime_checkable

from ...errors import UsageError
from ..engines.protocol import Decoder, StepOutput
from ..sampling.sampler import Sampler
from ..text.codec import TextCodec


class Drafter(Protocol):
    """Guesses the tokens that the target will choose next.

    A wrong guess costs time, never correctness, so a drafter may use whatever it likes. It needs only
    `propose`; `RollbackDrafter` and `EvidenceDrafter` are optional.
    """

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """Return up to `count` tokens to follow `tokens`; no tokens is a valid answer.

        Args:
            tokens: every token so far, prompt and committed output. Between two calls it only grows,
                unless a full cache slides: then its older half is gone.
            count: at most this many, at least 1.
        """


@runtime_checkable
class RollbackDrafter(Drafter, Protocol):
    """A drafter that keeps state about its proposals, such as a KV cache."""

    def rollback(self, length: int) -> None:
        """Keep the first `length` tokens of context plus proposal; forget the rest."""


@runtime_checkable
class EvidenceDrafter(Drafter, Protocol):
    """A drafter whose proposals an arbiter can judge, because it shows what a model saw."""

    def evidence(self, count: int) -> StepOutput:
        """Return the model's rows before each of the first `count` tokens of the last proposal."""


@dataclass(frozen=True)
class DraftingContext:
    """What a drafter is made from; each generation makes a new drafter.

    Attributes:
        codec: tokenizer and chat template of the bundle.
        decoder: of the draft model; None unless the drafter uses the draft model.
        prefill_chunk: most prompt tokens per forward pass.
        sampler: chooses tokens as the target does; None chooses the most likely ones.
        keep_evidence: an arbiter or a trace will ask for `evidence`.
        watch: callback that receives the probability of each drafted token and returns False to stop
            drafting; None drafts as many tokens as asked for.
    """

    codec: TextCodec
    decoder: Decoder | None = None
    prefill_chunk: int = 1
    sampler: Sampler | None = None
    keep_evidence: bool = False
    watch: Callable[[float], bool] | None = None


DrafterFactory = Callable[[DraftingContext], Drafter]
"""A drafter's class, or any function that makes one."""


def checked_proposal(drafter: Drafter, tokens: Sequence[int], count: int, vocab: int) -> list[int]:
    """Return what a drafter proposes as a list of at most `count` token ids.

    Args:
        drafter: proposes.
        tokens: every token so far.
        count: most tokens to propose.
        vocab: ids are below this.

    Raises:
        UsageError: the drafter returned something else.
    """
    proposed = drafter.propose(tokens, count)
    try:
        drafted = list(map(index, proposed))
    except TypeError:
        raise _refused(drafter, f"{proposed!a:.60}, which is no sequence of token ids") from None
    if len(drafted) > count:
        raise _refused(drafter, f"{len(drafted)} tokens, but at most {count} were asked for")
    if drafted and not 0 <= min(drafted) <= max(drafted) < vocab:
        wrong = next(token for token in drafted if not 0 <= token < vocab)
        raise _refused(drafter, f"the token {wrong}, but token ids run from 0 to {vocab - 1}")
    return drafted


def _refused(drafter: Drafter, what: str) -> UsageError:
    return UsageError(
        f"the drafter {type(drafter).__name__} proposed {what}",
        hint="`propose(tokens, count)` returns a list of at most `count` token ids",
    )


def no_evidence() -> UsageError:
    """Return the error of an arbiter with a drafter that has no model."""
    return UsageError(
        "collab needs what the draft model saw, and this session drafts without one",
        hint="use a bundle with a draft model and the drafter 'model', or the mode 'strict'",
    )
