"""How requests ask for JSON or for a grammar: OpenAI's `response_format`, and vLLM's own fields."""

from __future__ import annotations

from typing import Any, Literal

from .fields import Fields
from .refusals import RefusedError

ANY_OBJECT = {"type": "object"}

GUIDED = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "grammar",
    "guided_choice": "choice",
}
"""vLLM's older fields, and the generation options that they set."""

STRUCTURED = {"json": "json_schema", "regex": "regex", "grammar": "grammar", "choice": "choice"}
"""Fields of vLLM's `structured_outputs`."""


def read_constraint(fields: Fields) -> dict[str, Any]:
    """Return the generation options that a request's constraint sets; at most one.

    Raises:
        RefusedError: a field is wrong, or there are several constraints.
    """
    found = {
        name: (option, value)
        for name, option in GUIDED.items()
        if (value := fields.take(name)) is not None
    }
    if fields.has("response_format"):
        form = read_format(fields.inside("response_format"), inner="json_schema")
        found |= {} if form is None else {"response_format": form}
    if fields.has("structured_outputs"):
        form = _structured(fields.inside("structured_outputs"))
        found |= {} if form is None else {"structured_outputs": form}
    if len(found) > 1:
        raise RefusedError(
            f"{' and '.join(found)} are given, but the output can follow one of them only",
            param=next(iter(found)),
        )
    return dict(found.values())


def read_format(fields: Fields, inner: str = "") -> tuple[str, Any] | None:
    """Return the option and the value that a format sets, or None for plain text.

    Args:
        fields: of the format.
        inner: field that contains the schema and its name; empty if they are fields of the format.

    Raises:
        RefusedError: a field is wrong.
    """
    kind = fields.take("type", Literal["text", "json_object", "json_schema"])
    if kind is None:
        raise fields.missing("type")
    schema = None
    if kind == "json_schema":
        within = fields.inside(inner) if inner else fields
        schema = within.take("schema")
        for name in ("name", "description"):
            within.take(name, str)
        within.take("strict", bool)  # has no effect: the output always follows the schema
        within.finish({})
    fields.finish({})
    return None if kind == "text" else ("json_schema", ANY_OBJECT if schema is None else schema)


def _structured(fields: Fields) -> tuple[str, Any] | None:
    found = [
        (option, value)
        for name, option in STRUCTURED.items()
        if (value := fields.take(name)) is not None
    ]
    if fields.take("json_object", bool):
        found.append(("json_schema", ANY_OBJECT))
    fields.finish({"disable_any_whitespace": (True, False), "disable_fallback": (True, False)})
    if len(found) > 1:
        raise RefusedError("structured_outputs has several constraints", param="structured_outputs")
    return found[0] if found else None
