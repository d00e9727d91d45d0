"""What was measured of weight formats, as text for people."""

from __future__ import annotations

from typing import Any

from ...runtime.bundle.files import format_bytes
from ..tables import text_table

_FORMATS = ("target", "size", "perplexity", "rise", "agreement", "right", "")
_DRAFTS = ("draft", "size", "")
_TIMED = ("target", "draft", "tokens/s", "target only", "accepted", "differs")

NOTE = """\
'agreement' is the share of tokens at which the checkpoint's most likely token is this format's too.
'differs' is the share of outputs with drafts that are not the target's own without."""


def as_text(facts: dict[str, Any]) -> str:
    """Return the formats, the combinations and the choice, as `choose_weights` returns them."""
    lines = [f"the checkpoint's perplexity is {facts['reference']['perplexity']:.4g}"]
    lines += text_table([_FORMATS, *(_target(*each) for each in facts["formats"].items())])
    if facts["drafts"]:
        lines += ["", *text_table([_DRAFTS, *(_draft(*each) for each in facts["drafts"].items())])]
    lines += ["", *text_table([_TIMED, *map(_timed, facts["speed"])]), "", NOTE]
    chosen = facts["chosen"]
    draft = f", draft {chosen['draft']}" if chosen["draft"] else ""
    return "\n".join([*lines, "", f"written: target {chosen['target']}{draft}"])


def _target(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    if found["error"] is not None:
        return (name, *["-"] * 5, _verdict(found))
    return (
        name,
        format_bytes(found["bytes"]),
        f"{found['perplexity']:.4g}",
        f"{found['perplexity_increase']:+.2%}",
        f"{found['agreement']:.2%}",
        f"{found['accuracy']:.2%}" if "accuracy" in found else "-",
        _verdict(found),
    )


def _draft(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    size = "-" if found["error"] is not None else format_bytes(found["bytes"])
    return (name, size, _verdict(found))


def _verdict(found: dict[str, Any]) -> str:
    """Return why a format is refused, or the recipe of one that quantises."""
    return f"refused: {found['refused']}" if found["refused"] else found["recipe"] or ""


def _timed(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        each["target"],
        each["draft"] or "-",
        f"{each['tokens_per_second']:.1f}",
        f"{each['target_only_tokens_per_second']:.1f}",
        "-" if each["acceptance"] is None else f"{each['acceptance']:.1%}",
        f"{each['differs']:.0%}",
    )
