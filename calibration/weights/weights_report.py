"""What was measured of weight formats, as text for people."""

from __future__ import annotations

from typing import Any

from ...runtime.bundle.files import format_bytes
from ..tables import text_table

_COLUMNS = ("format", "size", "perplexity", "rise", "agreement", "right", "differs", "")

NOTE = """\
'differs' is the share of prompts whose strict output is not the target's own output without drafts. It
is 0 in fp32 and fp16 but for ties: a row's numbers do not depend on the other rows of its pass. In int8
they do, by one scale for all activations of a pass; in the other formats rounding makes a step of a
difference that fp32 would not show. Strict output is then the target's choice in the pass that verified
it."""


def as_text(facts: dict[str, Any]) -> str:
    """Return the formats, the combinations and the choice, as `choose_weights` returns them."""
    rows = [_row(name, found) for name, found in facts["formats"].items()]
    lines = text_table([_COLUMNS, *rows])
    lines += ["", NOTE, ""]
    timed: list[tuple[str, ...]] = [("target", "draft", "tokens/s", "target only", "accepted")]
    for each in facts["speed"]:
        accepted = "-" if each["acceptance"] is None else f"{each['acceptance']:.1%}"
        timed.append(
            (
                each["target"],
                each["draft"] or "-",
                f"{each['tokens_per_second']:.1f}",
                f"{each['target_only_tokens_per_second']:.1f}",
                accepted,
            )
        )
    lines += text_table(timed)
    chosen = facts["chosen"]
    draft = f", draft {chosen['draft']}" if chosen["draft"] else ""
    return "\n".join([*lines, "", f"written: target {chosen['target']}{draft}"])


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    size = format_bytes(sum(found["bytes"].values()))
    verdict = "" if not found["refused"] else f"refused: {found['refused']}"
    if found["error"] is not None:
        return (name, size, "-", "-", "-", "-", "-", verdict)
    return (
        name,
        size,
        f"{found['perplexity']:.4g}",
        f"{found['perplexity_increase']:+.2%}",
        f"{found['agreement']:.2%}",
        f"{found['accuracy']:.2%}" if "accuracy" in found else "-",
        f"{found['strict_differs']:.0%}",
        verdict,
    )
