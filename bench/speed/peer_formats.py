"""Formats of a pair's weights: `int8` for both models, `fp32+int4-128` for one each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ...errors import UsageError
from ...runtime.bundle.manifest import WeightFormat

OUR_FORMATS: tuple[WeightFormat, ...] = tuple(
    name for name in get_args(WeightFormat) if name != "fp16"
)
"""Without fp16: such weights are widened when they are loaded, and then as fast as fp32."""

_BETWEEN = "+"


@dataclass(frozen=True)
class PairFormat:
    """What the weights of a target and its draft are in; as text, one name where they agree."""

    target: WeightFormat
    draft: WeightFormat

    def __str__(self) -> str:
        same = self.target == self.draft
        return self.target if same else f"{self.target}{_BETWEEN}{self.draft}"


def both(weights: WeightFormat) -> PairFormat:
    """Return the format of a pair whose models are in the same."""
    return PairFormat(weights, weights)


def target_of(text: str) -> str:
    """Return the target's part of a format that was written as text."""
    return text.partition(_BETWEEN)[0]


def parse_formats(text: str) -> tuple[PairFormat, ...]:
    """Return formats that are separated by commas, each `BOTH` or `TARGET+DRAFT`, without repeats.

    Raises:
        UsageError: none, or one that is neither.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--formats: name at least one format", hint=_hint())
    return tuple(dict.fromkeys(_parse(word) for word in words))


def _parse(word: str) -> PairFormat:
    names = [name.strip() for name in word.split(_BETWEEN)]
    if len(names) > 2:
        raise UsageError(
            f"--formats: '{word}' names {len(names)} formats, but a pair has two models",
            hint=_hint(),
        )
    return PairFormat(_known(names[0]), _known(names[-1]))


def _known(name: str) -> WeightFormat:
    for known in OUR_FORMATS:
        if known == name:
            return known
    raise UsageError(f"--formats: unknown format '{name}'", hint=_hint())


def _hint() -> str:
    return (
        f"the formats are: {', '.join(OUR_FORMATS)}; TARGET{_BETWEEN}DRAFT takes one for each model"
    )
