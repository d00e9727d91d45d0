"""What a pair would do on memory of another speed: a roofline with nothing but bytes in it.

A pass of one token takes as long as reading its weights (Williams et al., 2009: a kernel that does few
operations a byte is bound by memory). A verify pass of several takes that times a factor, its verify
curve, which is 1 as long as the device computes faster than it reads. Left out are the KV cache, what
launching a pass costs, and the difference between a maker's peak bandwidth and what a program gets: the
error of all this on this machine is measured, and stated with each projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ...runtime.drafting.draft_length import expected_tokens
from .bandwidth import PairBytes

MOST_DRAFTED = 8


@dataclass(frozen=True)
class Projection:
    """What a roofline says of one pair on one memory.

    Attributes:
        target_only: tokens a second of the target alone.
        speculative: by draft length from 0, tokens a second.
    """

    target_only: float
    speculative: tuple[float, ...]

    @property
    def best_k(self) -> int:
        """The draft length with the most tokens a second; 0 where speculation loses."""
        return max(range(len(self.speculative)), key=self.speculative.__getitem__)

    @property
    def speedup(self) -> float:
        """Tokens a second at the best draft length over those of the target alone."""
        return self.speculative[self.best_k] / self.target_only


def project(
    sizes: PairBytes,
    bytes_per_second: float,
    acceptance: float,
    verify_curve: Sequence[float] = (),
) -> Projection:
    """Project a pair.

    Args:
        sizes: of the two models.
        bytes_per_second: of the memory.
        acceptance: probability that a drafted token stands, if all before it did.
        verify_curve: seconds of a verify pass over those of one token, by width from 1; beyond its end
            its last value counts, and an empty one is flat.
    """
    target, draft = sizes.target / bytes_per_second, sizes.draft / bytes_per_second
    tokens = expected_tokens([acceptance] * MOST_DRAFTED)
    rates = []
    for k, expected in enumerate(tokens):
        factor = verify_curve[min(k, len(verify_curve) - 1)] if verify_curve else 1.0
        rates.append(expected / (k * draft + factor * target))
    return Projection(rates[0], tuple(rates))


def verify_curve(
    rows: Sequence[dict[str, Any]], sizes: PairBytes, bytes_per_second: float
) -> list[float]:
    """Return the verify curve that measured rows imply, by width from 1.

    A round of k drafted tokens took tokens a pass over tokens a second; less k draft steps at the
    memory's speed, that is the verify pass.

    Args:
        rows: of one runtime, format and setting, with `k`, `decode_tokens_per_second` and, beyond
            k = 0, `tokens_per_pass`.
        sizes: of the pair.
        bytes_per_second: of this machine's memory.
    """
    by_k = {row["k"]: row for row in rows if row["k"] != "auto"}
    plain = 1 / by_k[0]["decode_tokens_per_second"]
    curve = [1.0]
    for k in range(1, MOST_DRAFTED + 1):
        if k not in by_k:
            break
        seconds = by_k[k]["tokens_per_pass"] / by_k[k]["decode_tokens_per_second"]
        curve.append((seconds - k * sizes.draft / bytes_per_second) / plain)
    return curve


def acceptance_of(rows: Sequence[dict[str, Any]]) -> float:
    """Return the probability that one drafted token stands, from the row that drafts one at a time."""
    return float(next(row["acceptance"] for row in rows if row["k"] == 1))


def projection_error(
    rows: Sequence[dict[str, Any]], sizes: PairBytes, bytes_per_second: float
) -> dict[str, float]:
    """Return how far a projection with a flat verify curve is from what this machine measured.

    Returns:
        `target_only`, `speculative` (median over k) and `speedup` (of the best k): projected over
        measured, less 1.
    """
    projected = project(sizes, bytes_per_second, acceptance_of(rows))
    measured = {row["k"]: row["decode_tokens_per_second"] for row in rows if row["k"] != "auto"}
    ratios = [projected.speculative[k] / rate for k, rate in measured.items() if k > 0]
    gained = max(rate for k, rate in measured.items()) / measured[0]
    return {
        "target_only": projected.target_only / measured[0] - 1,
        "speculative": median(ratios) - 1,
        "speedup": projected.speedup / gained - 1,
    }
