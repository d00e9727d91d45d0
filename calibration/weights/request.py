"""What is asked of a choice of weight formats, and when one is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import WeightFormat


@dataclass(frozen=True)
class Limits:
    """What a target's format may cost, against the source.

    Attributes:
        perplexity_increase: share by which the perplexity may rise.
        accuracy_loss: share of the tasks by which fewer may be right.
    """

    perplexity_increase: float
    accuracy_loss: float


@dataclass(frozen=True)
class WeightsRequest:
    """What to convert, into what, on what data.

    Attributes:
        bundle: the source's folder.
        output: the new bundle's folder.
        formats: those that are tried.
        limits: of the gate.
        texts: a file to measure perplexity on; None for the source's own answers to the tasks.
        tasks: with checkers, as `resolve_tasks` reads them; None measures no accuracy.
        items: tasks to use; None for all.
        text_tokens: tokens of texts to use at most.
        strict_prompts: prompts on which outputs with and without drafts are compared.
        target_format: the target's, instead of a choice.
        draft_format: the draft's, instead of a choice.
        force: replace a bundle at `output`.
    """

    bundle: Path
    output: Path
    formats: tuple[WeightFormat, ...]
    limits: Limits
    texts: Path | None = None
    tasks: str | None = None
    items: int | None = None
    text_tokens: int = 4096
    strict_prompts: int = 16
    target_format: WeightFormat | None = None
    draft_format: WeightFormat | None = None
    force: bool = False


def refusal(found: dict[str, Any], limits: Limits) -> str | None:
    """Return why a format is beyond the limits, with the figures, or None."""
    if found["error"] is not None:
        return str(found["error"])
    if found["perplexity_increase"] > limits.perplexity_increase:
        return (
            f"perplexity rises by {found['perplexity_increase']:.2%}, "
            f"{limits.perplexity_increase:.2%} is allowed"
        )
    # A share of tasks is compared, so one task more or less must not fall to rounding.
    if found.get("accuracy_loss", 0.0) > limits.accuracy_loss + 1e-9:
        return (
            f"{found['accuracy_loss']:.2%} fewer tasks are right, "
            f"{limits.accuracy_loss:.2%} is allowed"
        )
    return None
