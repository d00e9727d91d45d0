"""What trimming a draft changed, as text for people."""

from __future__ import annotations

from typing import Any

from ...runtime.bundle.files import format_bytes
from ..tables import text_table


def as_text(facts: dict[str, Any]) -> str:
    """Return the figures before and after, as `trim_draft` returns them."""
    share = facts["coverage"]
    rows = [("", "before", "after")]
    for label, key, shown in (
        ("draft's files", "draft_bytes", format_bytes),
        ("head, each step", "head_bytes", format_bytes),
        ("draft step", "draft_step_seconds", lambda seconds: f"{seconds * 1000:.2f} ms"),
        ("accepted", "acceptance", lambda part: "-" if part is None else f"{part:.1%}"),
        ("tokens/s", "tokens_per_second", lambda rate: f"{rate:.1f}"),
    ):
        rows.append((label, shown(facts["before"][key]), shown(facts["after"][key])))
    return "\n".join(
        [
            f"{facts['kept_tokens']} of {facts['vocab_size']} tokens kept: {share['counted']:.2%} of "
            f"the {facts['data']['counted_tokens']} counted, {share['held_out']:.2%} of "
            f"{facts['data']['held_out_tokens']} held out",
            *text_table(rows),
        ]
    )
