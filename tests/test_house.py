"""The structure in CONTRIBUTING.md: rooms, names, sizes, and dependencies that run one way."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("errors", "runtime", "models", "export", "calibration")
"""Each may import from itself and from those before it."""

MOST_LINES = 350
MOST_ENTRIES = 14
SHARED_NAMES = {"__init__.py", "cli.py", "protocol.py"}
FILES = sorted(
    path
    for room in (*FLOORS[1:], "bench")
    for path in (ROOT / room).rglob("*.py")
    if "workers" not in path.parent.name or room != "bench"
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES} | {"errors": ROOT / "errors.py"}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere, also in functions and for types."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            name = ".".join(filter(None, base))
            inner = {f"{name}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner or ({name} & set(MODULES))
    return found - {module_of(path)}


GRAPH = {module: imports_of(path) for module, path in MODULES.items()}


def test_the_graph_was_read():
    assert len(GRAPH) > 200
    assert "runtime.decoding.loop" in GRAPH["runtime.decoding.generation"]
    assert "errors" in GRAPH["runtime.decoding.session"]


@pytest.mark.parametrize("floor", range(1, len(FLOORS)))
def test_dependencies_run_one_way(floor):
    allowed = FLOORS[: floor + 1]
    wrong = [
        (module, other)
        for module, others in GRAPH.items()
        if module.split(".")[0] == FLOORS[floor]
        for other in others
        if other.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    state: dict[str, int] = defaultdict(int)
    circles = []

    def visit(module: str, path: list[str]) -> None:
        state[module] = 1
        for other in sorted(GRAPH[module]):
            if state[other] == 1:
                circles.append([*path[path.index(other) :], other] if other in path else [other])
            elif state[other] == 0:
                visit(other, [*path, other])
        state[module] = 2

    for module in sorted(GRAPH):
        if state[module] == 0:
            visit(module, [module])
    assert circles == []


def test_every_file_has_a_name_of_its_own():
    names = Counter(path.name for path in FILES)
    assert {name for name, count in names.items() if count > 1} <= SHARED_NAMES


def test_no_file_is_long():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in FILES
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("room", ["runtime", "calibration", "export", "models"])
def test_a_room_shows_its_contents_at_a_glance(room):
    entries = [path for path in (ROOT / room).iterdir() if path.name != "__pycache__"]
    most = MOST_ENTRIES if room in ("runtime", "calibration") else 24
    assert len(entries) <= most, sorted(path.name for path in entries)
