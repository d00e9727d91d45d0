"""The speculative loop: draft a block, verify it in one forward pass, keep what is accepted.

Speculative decoding (Leviathan et al., 2023; Stern et al., 2018). Without a referee every token is the
target's own choice, its most likely one or the sampler's, so the output is what the target alone would
have written, whatever the drafter proposes (`strict`). With a referee, a draft token may be kept
against the target (`collab`, Li et al., 2026). That needs no new pass: the target's later rows are
already conditioned on the draft's token.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, Protocol

from ..arbitration.referee import Referee
from ..drafting.draft_length import DraftLengthController
from ..drafting.protocol import (
    Drafter,
    EvidenceDrafter,
    RollbackDrafter,
    checked_proposal,
    no_evidence,
)
from ..engines.prefill import prefill
from ..engines.protocol import Decoder, StepOutput
from ..sampling.sampler import Sampler, TokenLogprob

Provenance = Literal["agreed", "draft", "target", "bonus"]
"""Who chose a token: both models; the draft, against the target; the target, against the draft or
alone; the target, as the extra token of a pass whose whole block was accepted."""

FinishReason = Literal["eos", "stop", "length", "capacity", "cancelled", "timeout"]

MOST_FORCED = 16
"""Most tokens of a block that the grammar forces, beside the drafter's own. They need no forward pass
of the draft and are accepted, so a wider pass replaces many narrow ones."""


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        max_tokens: most tokens to generate.
        eos_token_ids: tokens that end the text; the output includes the one that ends it.
        stop_token_ids: those of them that the caller chose, and not the model's author.
        num_draft_tokens: most tokens to draft per round; 0 is plain decoding.
        prefill_chunk: most prompt tokens per pass.
        vocab_size: proposed token ids are below this.
    """

    max_tokens: int
    eos_token_ids: Collection[int]
    num_draft_tokens: int
    prefill_chunk: int
    vocab_size: int = sys.maxsize
    stop_token_ids: Collection[int] = ()


@dataclass(frozen=True)
class Round:
    """What one verify pass added.

    Attributes:
        tokens: the new tokens; none only if the generation was interrupted.
        provenance: who chose each of them.
        drafted: number of proposed tokens.
        accepted: how many of them were accepted.
        finish: why the text ends here, or None if it goes on.
        mismatches: positions reached where the target would have chosen another token; those that were
            kept have the provenance `draft`.
        logprobs: of each new token, if the sampling parameters ask for them.
    """

    tokens: list[int]
    provenance: list[Provenance]
    drafted: int
    accepted: int
    finish: FinishReason | None
    mismatches: int = 0
    logprobs: Sequence[TokenLogprob] = ()

    def cut(self, count: int, finish: FinishReason) -> Round:
        """Return the round as if it had ended the text after `count` of its tokens."""
        provenance = self.provenance[:count]
        return replace(
            self,
            tokens=self.tokens[:count],
            provenance=provenance,
            accepted=min(self.accepted, count),
            finish=finish,
            mismatches=self.mismatches if count > self.accepted else provenance.count("draft"),
            logprobs=self.logprobs[:count],
        )


@dataclass(frozen=True)
class Observation:
    """A round before it is committed. Its arrays are views that the next round overwrites.

    Attributes:
        tokens: everything before the block.
        drafted: the block.
        verified: the target's choices along the block and after it, as far as they were made.
        accepted: how many drafted tokens were accepted.
        rows: the target's rows, the last len(drafted) + 1 of which belong to the block.
        drafter: proposed the block.
        referee: decided at mismatches; None in strict mode.
        drafting: seconds that drafting took.
        verifying: seconds that the verify pass took.
    """

    tokens: Sequence[int]
    drafted: Sequence[int]
    verified: Sequence[int]
    accepted: int
    rows: StepOutput
    drafter: Drafter
    referee: Referee | None
    drafting: float
    verifying: float


class Observer(Protocol):
    """Sees every round before it is committed, such as a trace."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs of both models that it reads; see `StepOutput`."""

    def see(self, observation: Observation) -> None:
        """Look at a round, and copy what must outlive it."""


def decode(
    target: Decoder,
    drafter: Drafter,
    tokens: list[int],
    limits: Limits,
    referee: Referee | None = None,
    controller: DraftLengthController | None = None,
    sampler: Sampler | None = None,
    observer: Observer | None = None,
    interrupted: Callable[[], FinishReason | None] = lambda: None,
) -> Iterator[Round]:
    """Extend `tokens` in place, one verify pass at a time.

    Between rounds the target's cache holds every token but the last, which the next pass feeds
    together with the drafted block.

    Args:
        target: a decoder of the target, holding a proper prefix of `tokens` (usually nothing).
        drafter: proposes tokens.
        tokens: the prompt, at least one token and at most the capacity.
        limits: when to stop.
        referee: decides at mismatches; None leaves them to the target.
        controller: chooses how many tokens to draft, within the limits; None drafts up to the limits.
        sampler: chooses the target's tokens; None takes the most likely ones.
        observer: sees each round.
        interrupted: called before each pass; a reason ends the text, with a round without tokens.

    Raises:
        BackendError: a backend failed; `tokens` holds what was committed before.
        UsageError: the drafter or the arbiter returned what its protocol does not allow.
    """
    evidence = drafter.evidence if isinstance(drafter, EvidenceDrafter) else None
    rollback = drafter.rollback if isinstance(drafter, RollbackDrafter) else None
    prefill(target, tokens, limits.prefill_chunk, limits.num_draft_tokens, interrupted)
    end = len(tokens) + limits.max_tokens
    finish: FinishReason | None = None
    while finish is None:
        reason = interrupted()
        if reason is not None:
            yield Round([], [], 0, 0, reason)
            return
        context = len(tokens)
        wanted = limits.num_draft_tokens if controller is None else controller.length()
        # The pass itself yields one token, and its tokens must fit the cache.
        room = min(end - context - 1, target.capacity - context)
        is_seen = referee is not None or observer is not None
        started = perf_counter()
        drafted, own = _draft(drafter, tokens, wanted, room, limits, sampler, is_seen=is_seen)
        drafting = perf_counter() - started
        block = tokens[target.length :] + drafted
        rows = target.step(block, rows=len(drafted) + 1)
        verifying = perf_counter() - started - drafting
        verified = _choices(rows, tokens, drafted, sampler, whole=referee is not None)
        matches = [proposed == chosen for proposed, chosen in zip(drafted, verified, strict=False)]
        keep = matches
        if referee is not None and not all(matches):
            if evidence is None:
                raise no_evidence()
            keep = referee.keep(tokens, drafted, verified, evidence(len(drafted)), rows)
        accepted = keep.index(False) if False in keep else len(keep)
        if controller is not None:
            right = min(max(accepted - own.start, 0), len(own))
            controller.record(len(own), right, drafting, len(block), verifying)
        if observer is not None:
            observer.see(
                Observation(
                    tokens, drafted, verified, accepted, rows, drafter, referee, drafting, verifying
                )
            )
        emitted = _through_eos([*drafted[:accepted], verified[accepted]], limits.eos_token_ids)
        logprobs = _logprobs(rows, len(drafted), emitted, sampler)

        tokens += emitted
        target.truncate(len(tokens) - 1)
        if rollback is not None:
            rollback(context + accepted)
        if tokens[-1] in limits.eos_token_ids:
            finish = "stop" if tokens[-1] in limits.stop_token_ids else "eos"
        elif len(tokens) == end:
            finish = "length"
        elif len(tokens) > target.capacity:
            finish = "capacity"
        provenance: list[Provenance] = [
            "agreed" if match else "draft" for match in matches[:accepted]
        ]
        if len(emitted) > accepted:  # unless the block itself ended the text
            provenance.append("bonus" if 0 < len(drafted) == accepted else "target")
        mismatches = matches[: accepted + 1].count(False)
        yield Round(emitted, provenance, len(drafted), accepted, finish, mismatches, logprobs)


def _draft(
    drafter: Drafter,
    tokens: list[int],
    wanted: int,
    room: int,
    limits: Limits,
    sampler: Sampler | None,
    *,
    is_seen: bool,
) -> tuple[list[int], range]:
    """Return a block: the drafter's tokens as far as a grammar allows them, and those that it forces.

    Args:
        drafter: proposes.
        tokens: everything before the block.
        wanted: most tokens that the drafter may add to those that are forced.
        room: most tokens of the block.
        limits: of the generation; 0 draft tokens are plain decoding, without forced tokens.
        sampler: has the grammar.
        is_seen: somebody looks at the draft's rows, so every token must be the drafter's own.

    Returns:
        The block, and the places of the drafter's tokens in it.
    """
    wanted = min(wanted, limits.num_draft_tokens)
    if room <= 0 or limits.num_draft_tokens == 0:
        return [], range(0)
    room = min(
        room, max(limits.num_draft_tokens, limits.prefill_chunk - 1)
    )  # an engine's widest pass
    forced = [] if sampler is None or is_seen else sampler.forced(tokens, [])
    lead = min(len(forced), MOST_FORCED, room)
    count = min(wanted + lead, room)
    drafted = (
        checked_proposal(drafter, tokens, count, limits.vocab_size)
        if count > lead
        else forced[:lead]
    )
    if sampler is not None:
        drafted = sampler.constrain(tokens, drafted)
    own = range(lead, max(lead, len(drafted)))
    if sampler is not None and not is_seen:
        most = min(room, wanted + MOST_FORCED) - len(drafted)
        drafted = drafted + sampler.forced(tokens, drafted)[: max(0, most)]
    return _through_eos(drafted, limits.eos_token_ids), own


def _choices(
    rows: StepOutput, tokens: list[int], drafted: list[int], sampler: Sampler | None, *, whole: bool
) -> list[int]:
    """Return the target's choices along the block and after it, or up to the first that differs."""
    if sampler is None:
        chosen: list[int] = rows.token[-len(drafted) - 1 :].tolist()
        return chosen
    assert rows.logits is not None
    return sampler.verify(rows.logits[-len(drafted) - 1 :], tokens, drafted, whole=whole)


def _logprobs(
    rows: StepOutput, drafted: int, emitted: list[int], sampler: Sampler | None
) -> Sequence[TokenLogprob]:
    """Return the log-probabilities of a round's tokens, if the sampling parameters ask for them."""
    if sampler is None or sampler.params.logprobs is None:
        return ()
    assert rows.logits is not None
    first = len(rows.logits) - drafted - 1
    return sampler.logprobs(rows.logits[first : first + len(emitted)], emitted)


def _through_eos(tokens: list[int], eos_token_ids: Collection[int]) -> list[int]:
    """Cut `tokens` after the first end-of-sequence token."""
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1]
    return tokens
