"""What tests use of a solution: the names, and whether they make objects of its classes."""

from __future__ import annotations

import ast
import builtins
import functools


@functools.lru_cache(maxsize=256)
def names_used(tests: str, helpers: str, entry_point: str | None) -> tuple[list[str], bool]:
    """The names that tests use, and whether they make objects of the solution's classes."""
    try:
        trees = ast.parse(tests), ast.parse(helpers)
        names = {
            node.id: None
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        objects = _uses_objects(*trees, entry_point)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], False  # the tests' own process reports it
    first = [] if entry_point is None else [entry_point]
    return [*dict.fromkeys([*first, *names])], objects


def _uses_objects(tests: ast.AST, helpers: ast.AST, entry_point: str | None) -> bool:
    """Whether tests make objects of the solution's classes.

    They do if they call, or take an attribute of, a name in CapWords that is not the entry point; if
    they use an attribute that no builtin type has of what a function returned (`q = queue()`, then
    `q.put(1)`); or if the helpers define a class.
    """
    if any(isinstance(node, ast.ClassDef) for node in ast.walk(helpers)):
        return True
    own = {node.name for node in ast.walk(tests) if hasattr(node, "name")}
    made: set[str] = set()
    for node in ast.walk(tests):
        name = _called(node) or (_name(node.value) if isinstance(node, ast.Attribute) else None)
        if name and name not in own and name != entry_point and _is_cap_words(name):
            return True
        if isinstance(node, ast.Assign) and _called(node.value):
            made |= {name for name in map(_name, node.targets) if name}
    return any(
        isinstance(node, ast.Attribute)
        and not any(hasattr(kind, node.attr) for kind in _BUILTIN_TYPES)
        and (_name(node.value) in made or _called(node.value))
        for node in ast.walk(tests)
    )


_BUILTIN_TYPES = (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, range)
_CAP_WORDS_OF_OTHERS = {"Counter", "OrderedDict", "Decimal", "Fraction"}


def _called(node: ast.AST) -> str | None:
    return _name(node.func) if isinstance(node, ast.Call) else None


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _is_cap_words(name: str) -> bool:
    is_builtin = hasattr(builtins, name) or name in _CAP_WORDS_OF_OTHERS
    return name[0].isupper() and any(map(str.islower, name)) and not is_builtin
