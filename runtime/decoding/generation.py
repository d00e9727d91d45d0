"""One generation: from the loop's rounds to pieces of text, with all that can end it early."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..arbitration.referee import Referee
from ..drafting.draft_length import DraftLengthController
from ..drafting.protocol import Drafter
from ..engines.prefill import prefill
from ..sampling.params import SamplingParams
from ..sampling.sampler import Sampler
from ..text.detokenizer import TextStream
from .caches import Caches
from .loop import FinishReason, Limits, Observer, Round, decode
from .stopping import Interrupt, StopTexts

SINKS = 4
"""First tokens that stay when a full cache slides: models lean on them (Xiao et al., 2023)."""


@dataclass(frozen=True)
class Plan:
    """All that is decided before a generation begins.

    Attributes:
        limits: when to stop.
        params: which texts end the output, among others.
        interrupt: ends it early.
        slide: a full cache forgets the older half of the text instead of ending it.
        referee: decides at mismatches, in collab mode.
        controller: chooses the draft length.
        sampler: chooses tokens; None for the most likely ones.
        observer: sees each round.
        drafter: proposes instead of the session's own.
    """

    limits: Limits
    params: SamplingParams
    interrupt: Interrupt
    slide: bool = False
    referee: Referee | None = None
    controller: DraftLengthController | None = None
    sampler: Sampler | None = None
    observer: Observer | None = None
    drafter: Drafter | None = None


def rounds(plan: Plan, caches: Caches, drafter: Drafter, tokens: list[int]) -> Iterator[Round]:
    """Decode behind `tokens` to the end; an interruption shows as a last round without tokens.

    Args:
        plan: how.
        caches: as far as they hold `tokens`, they are used.
        drafter: where proposals come from.
        tokens: prompt and, as it comes, output.
    """
    left = plan.limits.max_tokens
    finish: FinishReason | None = None
    while finish is None:
        prefill(
            caches.target,
            tokens,
            plan.limits.prefill_chunk,
            plan.limits.num_draft_tokens,
            plan.interrupt.reason,
        )
        finish = plan.interrupt.reason()
        if finish is not None:
            break
        decoding = decode(
            caches.target,
            drafter,
            tokens,
            replace(plan.limits, max_tokens=left),
            plan.referee,
            plan.controller,
            plan.sampler,
            plan.observer,
        )
        for round_ in decoding:
            left -= len(round_.tokens)
            slides = round_.finish == "capacity" and plan.slide and left > 0
            yield replace(round_, finish=None) if slides else round_
            if slides:
                tokens = _slide(tokens, caches, plan.sampler)
            elif round_.finish is not None:
                return
            finish = plan.interrupt.reason()
            if finish is not None:
                break
    yield Round([], [], 0, 0, finish)


def _slide(tokens: list[int], caches: Caches, sampler: Sampler | None) -> list[int]:
    """Return the text without its older half; what is left is read anew, at its new positions."""
    kept = tokens[:SINKS] + tokens[-(caches.target.capacity // 2) :]
    if sampler is not None:
        sampler.drop(len(tokens) - len(kept))
    caches.begin(kept)
    return kept


class Scribe:
    """Writes rounds down as text, up to a stop text.

    Args:
        text: decodes the output.
        params: stop texts, and how many tokens come before they count.
    """

    def __init__(self, text: TextStream, params: SamplingParams) -> None:
        self._text = text
        self._stops = StopTexts(params.stop)
        self._exempt = params.min_tokens

    def write(self, round_: Round) -> tuple[str, Round]:
        """Return the text that a round adds, and the round as far as it belongs to the output."""
        written = ""
        for i, token in enumerate(round_.tokens):
            new = self._text.push([token])
            if self._exempt > 0:
                self._exempt -= 1
                written += new
                continue
            certain, stopped = self._stops.push(new)
            written += certain
            if stopped:
                return written, round_.cut(i + 1, "stop")
        if round_.finish is not None:
            certain, stopped = self._stops.push(self._text.finish())
            written += certain + self._stops.finish()
            if stopped:
                round_ = replace(round_, finish="stop")
        return written, round_
