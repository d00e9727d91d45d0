"""The page that shows traces: one HTML file without external resources."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..bundle.durable import write_whole


def write_page(path: str | Path, turns: Sequence[dict[str, Any]]) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the page; an existing file is replaced.
        turns: see `render`.

    Raises:
        ResourceError: the file cannot be written.
    """
    write_whole(Path(path), render(turns).encode("utf-8"))


def render(turns: Sequence[dict[str, Any]]) -> str:
    """Return the page of one generation or of a conversation.

    The text of a model is untrusted. It is embedded as data that cannot end its HTML element, and the
    page's content security policy allows only the page's own script.

    Args:
        turns: the result of `Trace.to_json` for each generation, in their order. In a conversation each
            also has a field `said`: the message that it answers.
    """
    head, style, middle, script, tail = split_page(read_template())
    policy = (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    embedded = json.dumps({"turns": list(turns)})
    for character in "<>&":
        embedded = embedded.replace(character, f"\\u{ord(character):04x}")
    head = head.replace("{{policy}}", policy)
    middle = middle.replace("{{data}}", embedded)
    return head + style + middle + script + tail


def read_template() -> str:
    """Return the page without its data."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def split_page(template: str) -> tuple[str, str, str, str, str]:
    """Cut the template around the contents of its style and of its script."""
    head, opened, rest = template.partition("<style>")
    style, closed, rest = rest.partition("</style>")
    middle, began, rest = rest.partition("<script>")
    script, ended, tail = rest.partition("</script>")
    return head + opened, style, closed + middle + began, script, ended + tail


def digest(text: str) -> str:
    """Return the hash of a text as content security policies write it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
