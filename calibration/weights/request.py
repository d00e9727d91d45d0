"""What is asked of a choice of weight formats, which formats are tried, and when one is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...export.weights.chosen_weights import WeightChoice
from ...models.checkpoint import Checkpoint

KEEPING: tuple[WeightChoice, ...] = ("keep", "exact", "fast")
"""Formats of quantised checkpoints."""
QUANTISING: tuple[WeightChoice, ...] = ("int8", "int4")
"""Formats of checkpoints in full precision, behind a limit."""
FORMATS: tuple[WeightChoice, ...] = (*KEEPING, "fp32", "fp16", *QUANTISING)


@dataclass(frozen=True)
class Limits:
    """What a target's format may cost.

    Attributes:
        perplexity_increase: share by which the perplexity may be above the checkpoint's.
        accuracy_loss: share of the tasks by which fewer may be right than in the format that agrees
            best with the checkpoint.
    """

    perplexity_increase: float
    accuracy_loss: float


@dataclass(frozen=True)
class WeightsRequest:
    """What to export, in which formats, and on what data to measure.

    Attributes:
        target: as in `ExportOptions`.
        draft: the same.
        output: the bundle's folder.
        limits: of the target.
        formats: of the target; None for all that its checkpoint can take but fp32.
        draft_formats: the same of the draft.
        texts: a file to measure perplexity on; None for the text that CoSpec brings.
        text_tokens: tokens of it to use at most; None for as many as take some minutes.
        tasks: with checkers, as `resolve_tasks` reads them; None measures no answers.
        items: tasks to use; None for all.
        capacity: tokens of context; None for the exporter's default.
        force: replace a bundle at `output`.
    """

    target: str
    draft: str | None
    output: Path
    limits: Limits
    formats: str | None = None
    draft_formats: str | None = None
    texts: Path | None = None
    text_tokens: int | None = None
    tasks: str | None = None
    items: int | None = None
    capacity: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Formats:
    """Formats of a role.

    Attributes:
        tried: in order.
        skipped: why others that were named are not, by name.
    """

    tried: list[WeightChoice]
    skipped: dict[str, str]


def choose_formats(role: str, checkpoint: Checkpoint, named: str | None) -> Formats:
    """Return the formats to try of a checkpoint.

    Args:
        role: target or draft.
        checkpoint: of the role.
        named: what the user asked for, with commas; None for the default.

    Raises:
        UsageError: an unknown format, or none that the checkpoint can take.
    """
    is_quantised = checkpoint.is_quantised
    default = KEEPING if is_quantised else ("fp16", *QUANTISING)
    wanted = default if named is None else parse_formats(named)
    skipped: dict[str, str] = {}
    for weights in wanted:
        if is_quantised and weights in QUANTISING:
            skipped[weights] = "its weights are quantised already, and 'exact' keeps their numbers"
        elif not is_quantised and weights in KEEPING:
            skipped[weights] = "its weights are plain numbers, which 'fp32' stores as they are"
        elif role == "draft" and weights == "fast":
            skipped[weights] = "for a draft it is the same as 'keep'"
    tried = [weights for weights in wanted if weights not in skipped]
    if not tried:
        reasons = "; ".join(f"{weights}: {reason}" for weights, reason in skipped.items())
        raise UsageError(f"the {role} {checkpoint.name} can take none of the formats: {reasons}")
    return Formats(tried, {} if named is None else skipped)


def parse_formats(text: str) -> tuple[WeightChoice, ...]:
    """Return the formats that a text names, each once.

    Raises:
        UsageError: names one that there is not.
    """
    found: dict[WeightChoice, None] = {}
    for name in (part.strip() for part in text.split(",")):
        known = next((weights for weights in FORMATS if weights == name), None)
        if known is None:
            raise UsageError(
                f"unknown weight format '{name}'", hint=f"the formats are: {', '.join(FORMATS)}"
            )
        found[known] = None
    return tuple(found)


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
