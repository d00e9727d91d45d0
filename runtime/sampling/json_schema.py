"""JSON schemas as the output follows them: always within the user's schema, and quick to finish."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from .declaration import OptionError

SPACING: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""White space in the output: one space after ',' and ':', as `json.dumps` writes it.

Free white space costs tokens, hides which text is forced, and lets small models indent without end.
"""

FORMATS = frozenset(
    {
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uuid",
        "unknown",
    }
)
"""Formats that llguidance enforces. The others have no effect, which the standard allows."""

_ONE = frozenset(
    {"additionalItems", "additionalProperties", "contains", "else", "if", "items", "not"}
    | {"propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"}
)
_LISTS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values are a schema, a list of schemas, or schemas by name."""

_COMBINED = frozenset({"$dynamicRef", "$recursiveRef", "$ref", "anyOf"})
_ABOUT_OBJECTS = frozenset(
    {
        "maxProperties",
        "minProperties",
        "patternProperties",
        "properties",
        "propertyNames",
        "required",
    }
)
_OPEN = frozenset(
    {"allOf", "dependencies", "dependentRequired", "dependentSchemas", "if", "not", "oneOf"}
    | {"unevaluatedProperties"}
)
"""With these, closing one object can contradict another part of the schema."""


_TYPES = ("array", "boolean", "null", "number", "object", "string")

MOST_REFERENCES = 20
"""References from one to the next that are followed."""


def schema_text(value: str | bool | Mapping[str, Any]) -> str:
    """Return a JSON schema, given as JSON text or as a value, as the JSON text of an object.

    Raises:
        OptionError: it is not JSON, or neither an object nor true or false.
    """
    schema: Any = value
    if isinstance(value, str):
        try:
            schema = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise OptionError("json_schema", f"json_schema is not JSON: {error}") from error
    if isinstance(schema, bool):  # `true` allows everything, `false` nothing
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, Mapping):
        raise OptionError("json_schema", "json_schema must be a JSON object, or true or false")
    try:
        return json.dumps(schema)
    except RecursionError:
        raise OptionError("json_schema", "json_schema is nested too deeply") from None


def followed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema that the output follows: each of its values is valid by the given schema too.

    - `oneOf` becomes `anyOf` if no value can be valid by two of its schemas.
    - Objects with `properties` have no others, unless the schema has `additionalProperties`.
    - Formats that nobody checks are left out.
    - White space is fixed, unless the schema sets it in `x-guidance`.
    """
    known = _mapped(schema, _without_unknown_format)
    chosen = _mapped(known, lambda each: _any_of_exclusive(each, known))
    closed = _mapped(chosen, _closed) if _may_close(chosen) else chosen
    return {"x-guidance": dict(SPACING), **closed}


def moved(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a schema as a part of another one, at `place`, such as `#/anyOf/0`."""

    def change(each: dict[str, Any]) -> dict[str, Any]:
        reference = each.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            each["$ref"] = place + reference[1:]
        return each

    new: dict[str, Any] = _mapped(schema, change)
    return new


def _mapped(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a schema with each schema within it changed; values that are no schema stay."""
    if not isinstance(schema, Mapping):
        return schema
    new = dict(schema)
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            new[key] = [_mapped(each, change) for each in value]
        elif key in _NAMED and isinstance(value, Mapping):
            new[key] = {name: _mapped(each, change) for name, each in value.items()}
        elif key in _ONE:
            new[key] = _mapped(value, change)
    return change(new)


def _without_unknown_format(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
        del schema["format"]
    return schema


def _any_of_exclusive(schema: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with `anyOf` in place of `oneOf`, if the two mean the same for it."""
    branches = schema.get("oneOf")
    if not isinstance(branches, list) or "anyOf" in schema:
        return schema
    resolved = [_resolved(branch, root) for branch in branches]
    if not all(_exclude(*pair) for pair in combinations(resolved, 2)):
        return schema
    return {**{key: value for key, value in schema.items() if key != "oneOf"}, "anyOf": branches}


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references within the document; return an empty schema for what cannot be followed."""
    for _ in range(MOST_REFERENCES):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        reference = str(schema["$ref"])
        schema = root if reference.startswith("#/") else {}
        for part in reference.removeprefix("#/").split("/"):
            if isinstance(schema, list):
                schema = dict(enumerate(schema)).get(int(part) if part.isdecimal() else -1)
            else:
                schema = schema.get(part) if isinstance(schema, Mapping) else {}
    return schema if isinstance(schema, Mapping) else {}


def _exclude(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two schemas certainly have no value in common."""
    values = _values(one), _values(other)
    if values[0] is not None and values[1] is not None:
        return values[0].isdisjoint(values[1])
    types = _types(one), _types(other)
    if types[0].isdisjoint(types[1]):
        return True
    if types != ({"object"}, {"object"}):
        return False
    tags = [_tags(each) for each in (one, other)]
    return any(tags[0][name].isdisjoint(tags[1][name]) for name in tags[0].keys() & tags[1].keys())


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """Return the only values of a schema as JSON text, or None if it does not list them."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    # 1 and 1.0 are one value, so lists with fractions are not compared.
    if not isinstance(listed, list) or any(isinstance(each, float) for each in listed):
        return None
    return {json.dumps(each, sort_keys=True) for each in listed}


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Return the types that values of a schema may have; integers count as numbers."""
    given = schema.get("type")
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else _TYPES
    return {"number" if each == "integer" else each for each in named if isinstance(each, str)}


def _tags(schema: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the values of required properties that list theirs."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return {}
    found = {
        name: _values(each)
        for name, each in properties.items()
        if name in required and isinstance(each, Mapping)
    }
    return {name: values for name, values in found.items() if values is not None}


def _may_close(schema: Mapping[str, Any]) -> bool:
    """Return whether no part of a schema can contradict another part that is closed."""
    found: list[set[str]] = []

    def note(each: dict[str, Any]) -> dict[str, Any]:
        found.append(set(each))
        return each

    _mapped(schema, note)
    return not any(keys & _OPEN or (keys & _COMBINED and keys & _ABOUT_OBJECTS) for keys in found)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an object's schema without further properties, if it can be met by those that it lists."""
    listed, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(listed, Mapping) or not isinstance(required, list):
        return schema
    if schema.keys() & {
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
    }:
        return schema
    if not all(isinstance(name, str) and name in listed for name in required):
        return schema
    return {**schema, "additionalProperties": False}
