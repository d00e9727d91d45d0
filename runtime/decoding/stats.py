"""Counters and times of a generation, with vLLM's names where it has them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import Any

from .loop import Round


@dataclass
class GenerationStats:
    """Counters of one generation, updated with each round.

    Attributes:
        num_prompt_tokens: tokens of the prompt.
        num_cached_tokens: those of them that the target's cache held already.
        num_generated_tokens: tokens of the output, including an end-of-sequence token.
        num_target_passes: verify passes, including those without drafted tokens; prefill is not
            counted.
        num_drafts: passes with at least one drafted token.
        num_draft_tokens: proposed tokens.
        num_accepted_tokens: proposed tokens that were accepted.
        num_accepted_tokens_per_pos: accepted tokens by position in the block, first position first.
        num_draft_tokens_per_pos: proposed tokens by position.
        num_mismatches: positions reached at which the models disagreed.
        num_overrides: mismatches at which the draft's token was kept.
        num_capped: mismatches at which a cap prevented that, by the cap's name; collab only.
        ttft: seconds to the first round of tokens, prefill included.
        decode_seconds: seconds from the first round's end to the last.
        first_round_tokens: tokens of the first round.
    """

    num_prompt_tokens: int
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_target_passes: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    num_draft_tokens_per_pos: list[int] = field(default_factory=list)
    num_mismatches: int = 0
    num_overrides: int = 0
    num_capped: dict[str, int] = field(default_factory=dict)
    ttft: float = 0.0
    decode_seconds: float = 0.0
    first_round_tokens: int = 0
    _start: float = field(default_factory=perf_counter, repr=False)

    def add(self, round_: Round) -> None:
        """Count one round."""
        now = perf_counter()
        if self.num_target_passes == 0:
            self.ttft = now - self._start
            self.first_round_tokens = len(round_.tokens)
        self.decode_seconds = now - self._start - self.ttft
        self.num_target_passes += 1
        self.num_generated_tokens += len(round_.tokens)
        self.num_drafts += round_.drafted > 0
        self.num_draft_tokens += round_.drafted
        self.num_accepted_tokens += round_.accepted
        self.num_mismatches += round_.mismatches
        self.num_overrides += round_.provenance.count("draft")
        missing = round_.drafted - len(self.num_draft_tokens_per_pos)
        self.num_draft_tokens_per_pos += [0] * missing
        self.num_accepted_tokens_per_pos += [0] * missing
        for position in range(round_.drafted):
            self.num_draft_tokens_per_pos[position] += 1
            self.num_accepted_tokens_per_pos[position] += position < round_.accepted

    @property
    def draft_acceptance_rate(self) -> float | None:
        """Share of the proposed tokens that were accepted; None if none were proposed."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def override_rate(self) -> float | None:
        """Share of the mismatches at which the draft's token was kept."""
        return _ratio(self.num_overrides, self.num_mismatches)

    @property
    def mean_acceptance_length(self) -> float | None:
        """Mean tokens per drafted round, including the target's own token."""
        accepted = _ratio(self.num_accepted_tokens, self.num_drafts)
        return None if accepted is None else 1 + accepted

    @property
    def tokens_per_target_pass(self) -> float | None:
        """Tokens per verify pass; 1 is plain decoding."""
        return _ratio(self.num_generated_tokens, self.num_target_passes)

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first round."""
        return _ratio(self.decode_seconds, self.num_generated_tokens - self.first_round_tokens)

    def to_json(self) -> dict[str, Any]:
        """Return counters and derived rates as plain values."""
        rates = zip(self.num_accepted_tokens_per_pos, self.num_draft_tokens_per_pos, strict=True)
        counters = [each.name for each in fields(self) if each.name.startswith("num_")]
        derived = ("override_rate", "draft_acceptance_rate", "mean_acceptance_length")
        named = (*counters, *derived, "tokens_per_target_pass")
        return {
            **{name: getattr(self, name) for name in named},
            "acceptance_rate_per_pos": [_ratio(a, d) for a, d in rates],
            "ttft_seconds": self.ttft,
            "tpot_seconds": self.tpot,
            "decode_seconds": self.decode_seconds,
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
