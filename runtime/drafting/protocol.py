"""What the loop asks of a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...errors import UsageError
from ..engines.protocol import StepOutput


class Drafter(Protocol):
    """Guesses the tokens that the target will choose next.

    A wrong guess costs time, never correctness, so a drafter may use whatever it likes.
    """

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return up to `count` tokens to follow `tokens`; an empty list is a valid answer.

        Args:
            tokens: every token so far, prompt and committed output. Between two calls it only grows,
                unless a full cache slides: then its older half is gone.
            count: at most this many.
        """

    def evidence(self, count: int) -> StepOutput:
        """Return what the drafter saw before each of the first `count` tokens of its last proposal.

        Raises:
            UsageError: this drafter sees nothing, so an arbiter cannot judge its proposals.
        """

    def rollback(self, length: int) -> None:
        """Only the first `length` tokens of context plus proposal stand; forget the rest."""


class NoDrafter:
    """Proposes nothing: the loop becomes plain decoding, one token a pass."""

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return nothing."""
        return []

    def evidence(self, count: int) -> StepOutput:
        """Refuse: there was no proposal."""
        raise no_evidence()

    def rollback(self, length: int) -> None:
        """There is nothing to forget."""


def no_evidence() -> UsageError:
    """Return the error of a drafter that has no model."""
    return UsageError(
        "collab needs what the draft model saw, and this session drafts without one",
        hint="use a bundle with a draft model and the drafter 'model', or the mode 'strict'",
    )
