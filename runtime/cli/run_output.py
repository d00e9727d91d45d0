"""How cospec-run shows a generation: coloured tokens, statistics, JSON."""

from __future__ import annotations

import io
import sys
from collections import deque
from pathlib import Path
from typing import Any

import click

from ..bundle.certificate import is_certified
from ..bundle.manifest import Manifest
from ..decoding.completion import Completion, Piece
from ..decoding.loop import Provenance
from ..decoding.stats import GenerationStats
from ..text.detokenizer import TextStream

COLOURS: dict[Provenance, str] = {
    "agreed": "green",
    "draft": "magenta",
    "bonus": "cyan",
    "target": "yellow",
}
"""Colours of --provenance."""


def print_any_text() -> None:
    """Print "?" for characters that the encoding of stdout lacks, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class Painter:
    """Colours the text of pieces, token by token, by who chose it.

    Args:
        text: decodes the output that the pieces belong to.
    """

    def __init__(self, text: TextStream) -> None:
        self._text = text
        self._spans: deque[tuple[int, Provenance]] = deque()
        self._who: Provenance = "target"

    def paint(self, piece: Piece) -> str:
        """Return the piece's text in the colours of COLOURS.

        Text that may become a stop text comes with a later piece, so tokens may precede their text.
        """
        for token, who in zip(piece.tokens, piece.provenance, strict=True):
            self._spans.append((len(self._text.push([token])), who))
        painted, left = "", piece.text
        while left:
            size = self._next(len(left))
            painted += click.style(left[:size], fg=COLOURS[self._who]) if size else ""
            left = left[size:]
        return painted

    def _next(self, most: int) -> int:
        """Advance to the token that the next text belongs to; return how many characters do."""
        if self._spans:
            size, self._who = self._spans.popleft()
            if size > most:
                self._spans.appendleft((size - most, self._who))
            elif self._spans:
                return size
        return most  # what is left belongs to the last token


def legend() -> str:
    """Return a legend of the colours, in one line."""
    names = "  ".join(click.style(who, fg=colour) for who, colour in COLOURS.items())
    return f"[{names}]"


def end_json(completion: Completion) -> dict[str, Any]:
    """Return what no piece contains, as plain values."""
    said = ("text", "tokens", "provenance", "logprobs")
    return {key: value for key, value in completion.to_json().items() if key not in said}


def warn_if_uncertified(folder: Path, manifest: Manifest) -> None:
    """Warn on stderr if the bundle's arbiter has no certificate of its quality.

    Raises:
        BundleError: see `is_certified`.
    """
    if not is_certified(folder, manifest):
        click.echo(
            "warning: this bundle's arbiter was never certified, so the accuracy of its answers is not "
            "known; run cospec-calibrate certify",
            err=True,
        )


def describe(stats: GenerationStats) -> str:
    """Return the statistics as a few lines for people."""

    def figure(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    tpot = stats.tpot
    rate = None if not tpot else 1 / tpot
    overrides = []
    if stats.num_capped:  # collab
        capped = ", ".join(f"{n} {cap}" for cap, n in stats.num_capped.items() if n)
        overrides = [
            f"overrides    {stats.num_overrides} of {stats.num_mismatches} mismatches "
            f"({figure(stats.override_rate, '.0%')})" + (f"; capped: {capped}" if capped else "")
        ]
    cached = f" ({stats.num_cached_tokens} of them cached)" if stats.num_cached_tokens else ""
    return "\n".join(
        [
            f"tokens       {stats.num_prompt_tokens} prompt{cached}, "
            f"{stats.num_generated_tokens} generated",
            f"passes       {stats.num_target_passes} of the target, "
            f"{figure(stats.tokens_per_target_pass, '.2f')} tokens each",
            f"drafted      {stats.num_draft_tokens}, accepted {stats.num_accepted_tokens} "
            f"({figure(stats.draft_acceptance_rate, '.0%')})",
            *overrides,
            f"time         {stats.ttft * 1000:.1f} ms to the first tokens, then "
            f"{figure(rate, '.0f')} tokens/s",
        ]
    )


def incomplete(reason: str | None) -> str:
    """Return the warning for an output that ends before its grammar does."""
    return f"warning: the output is incomplete: it ended ({reason}) before it matched the grammar"
