"""The speculative loop: draft a block, verify it in one pass, keep what stands.

Greedy speculative decoding (Leviathan et al., 2023; Stern et al., 2018). Without a referee every
token is the target's own choice, so the output equals the target's greedy output whatever the drafter
says (`strict`). With one, a draft token may stand against the target (`collab`, Li et al., 2026). That
needs no new pass: the target's later rows are already conditioned on the draft's token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from .arbitration.referee import Referee
from .drafting.protocol import Drafter
from .engines.protocol import Decoder
from .guard import Guard
from .prefill import prefill

Provenance = Literal["agreed", "draft", "target", "bonus"]
"""Who chose a token: both models; the draft, against the target; the target, against the draft or
alone; the target, as the extra token that a pass yields when the whole block was accepted."""

FinishReason = Literal["eos", "length", "capacity"]


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        max_tokens: tokens to generate at most.
        eos_token_ids: a token that ends the text; it is emitted as the last token.
        num_draft_tokens: tokens to draft a round at most; 0 is plain decoding.
        prefill_chunk: prompt tokens per pass.
    """

    max_tokens: int
    eos_token_ids: Collection[int]
    num_draft_tokens: int
    prefill_chunk: int


@dataclass(frozen=True)
class Round:
    """What one verify pass added.

    Attributes:
        tokens: the new tokens, at least one.
        provenance: who chose each of them.
        drafted: tokens that were proposed.
        accepted: how many of them stand.
        finish: why the text ends here, or None if it goes on.
        mismatches: positions reached where the target would have chosen another token; those that stand
            have the provenance `draft`.
    """

    tokens: list[int]
    provenance: list[Provenance]
    drafted: int
    accepted: int
    finish: FinishReason | None
    mismatches: int = 0


def decode(
    target: Decoder,
    drafter: Drafter,
    tokens: list[int],
    limits: Limits,
    referee: Referee | None = None,
    guard: Guard | None = None,
) -> Iterator[Round]:
    """Extend `tokens` in place, one verify pass at a time.

    Between rounds the target's cache holds every token but the last, which the next pass feeds
    together with the drafted block.

    Args:
        target: a decoder of the target, holding a proper prefix of `tokens` (usually nothing).
        drafter: where proposals come from.
        tokens: the prompt, at least one token and at most the capacity.
        limits: when to stop.
        referee: decides at mismatches; None leaves them to the target.
        guard: chooses how many tokens to draft, within the limits; None drafts as many as they allow.

    Raises:
        BackendError: a backend failed; `tokens` holds what was committed before.
    """
    prefill(target, tokens, len(tokens) - 1, limits.prefill_chunk)
    end = len(tokens) + limits.max_tokens
    finish: FinishReason | None = None
    while finish is None:
        context = len(tokens)
        wanted = limits.num_draft_tokens if guard is None else guard.length()
        # The pass itself yields one token, and its tokens must fit the cache.
        room = min(wanted, limits.num_draft_tokens, end - context - 1, target.capacity - context)
        started = perf_counter()
        drafted = drafter.propose(tokens, room) if room > 0 else []
        drafted = _through_eos(drafted, limits.eos_token_ids)

        drafting = perf_counter() - started
        block = tokens[target.length :] + drafted
        rows = target.step(block)
        verifying = perf_counter() - started - drafting
        verified = rows.token.tolist()[-len(drafted) - 1 :]
        matches = [proposed == chosen for proposed, chosen in zip(drafted, verified, strict=False)]
        keep = matches
        if referee is not None and not all(matches):
            keep = referee.keep(tokens, drafted, drafter.evidence(len(drafted)), rows)
        accepted = keep.index(False) if False in keep else len(keep)
        if guard is not None:
            guard.record(len(drafted), accepted, drafting, len(block), verifying)
        emitted = _through_eos([*drafted[:accepted], verified[accepted]], limits.eos_token_ids)

        tokens += emitted
        target.truncate(len(tokens) - 1)
        drafter.rollback(context + accepted)
        if tokens[-1] in limits.eos_token_ids:
            finish = "eos"
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
        yield Round(emitted, provenance, len(drafted), accepted, finish, mismatches)


def _through_eos(tokens: list[int], eos_token_ids: Collection[int]) -> list[int]:
    """Cut `tokens` behind the first end-of-sequence token."""
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1]
    return tokens
