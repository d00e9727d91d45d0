"""Every TensorRT name that is used exists in every version that is claimed.

The names were read off NVIDIA's bindings of each version; see tests/data/README.md. A name that not
every version has is used behind a guard, and listed here with its first version.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RECORDED = json.loads((ROOT / "tests" / "data" / "trt_api_names.json").read_text())
FILES = [
    *sorted((ROOT / "runtime" / "tensorrt").glob("*.py")),
    ROOT / "export" / "dropped_inputs.py",
    ROOT / "export" / "tensorrt_export.py",
]
CLAIMED = ("10.3.0", "10.13.3", "10.16.1", "11.4.0", "rtx-1.7.1")
# Which class a variable is, where a file calls a method of it.
OBJECTS = {
    "builder.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "made": "IOptimizationProfile",
        "cache": "ITimingCache",
    },
    "dropped_inputs.py": {"layer": "ILayer", "before": "ILayer"},
    "lint.py": {"definition": "INetworkDefinition", "attention": "IAttention", "layer": "ILayer"},
    "plan.py": {
        "engine": "ICudaEngine",
        "native": "IExecutionContext",
        "_runtime": "Runtime",
    },
}
# Used only where it exists: first version of TensorRT, and why older ones do without.
GUARDED = {
    "ComputeCapability": "rtx",  # only RTX builds for another GPU
    "IBuilderConfig.num_compute_capabilities": "rtx",
    "IBuilderConfig.set_compute_capability": "rtx",
    "IAttentionInputLayer": "10.15",  # only the scatter form, which asks for 10.15, has Attention
    "IAttention.causal": "10.15",
    "IAttention.causal_kind": "11.0",
    "IAttention.decomposable": "10.15",
    "IAttention.get_input": "10.15",
    "IAttention.mask": "10.15",
    "IAttention.name": "10.15",
    "ICudaEngine.get_aliased_input_tensor": "10.15",
}


def used_names(source: str, objects: dict[str, str]) -> Iterator[str]:
    """Yield `X` and `X.y` of every `trt.X.y`, and `Class.y` of every method of a known object."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        base = node.value
        if is_module(base):
            yield node.attr
        of_module = isinstance(base, ast.Attribute) and is_module(base.value)
        if of_module and not base.attr.startswith("__"):
            yield f"{base.attr}.{node.attr}"
        last = getattr(base, "id", None) or getattr(base, "attr", None)
        if last in objects:
            yield f"{objects[last]}.{node.attr}"


def is_module(node: ast.AST) -> bool:
    return getattr(node, "id", None) == "trt" or getattr(node, "attr", None) == "trt"


def versions_of(name: str) -> set[str]:
    """Versions in which a class, a function or a member is recorded."""
    kind, _, member = name.partition(".")
    entry = RECORDED["names"].get(kind, {"in": "", "members": {}})
    if not member:
        return {RECORDED["versions"][int(i)] for i in entry["in"]}
    found = (key for key, names in entry["members"].items() if member in names.split())
    return {RECORDED["versions"][int(i)] for key in found for i in key}


USED = sorted(
    {name for file in FILES for name in used_names(file.read_text(), OBJECTS.get(file.name, {}))}
)


def test_the_collector_sees_what_the_code_uses():
    assert {"Builder", "OnnxParser.parse_from_file", "ProfilingVerbosity.DETAILED"} <= set(USED)
    assert set(used_names("trt.Made.up(self.engine.go)", {"engine": "E"})) == {
        "Made",
        "Made.up",
        "E.go",
    }


@pytest.mark.parametrize("name", USED)
def test_a_used_name_exists_in_every_claimed_version(name):
    missing = set(CLAIMED) - versions_of(name)
    if name in GUARDED:
        since = GUARDED[name]
        if since == "rtx":
            assert versions_of(name) & {"rtx-1.4.0", "rtx-1.7.1"}
            return
        first = tuple(map(int, since.split(".")))
        missing = {v for v in missing if not v.startswith("rtx") and release(v) >= first}
    assert not missing, f"{name} does not exist in {sorted(missing)}"


def test_no_guard_is_listed_for_nothing():
    for name, since in GUARDED.items():
        assert set(CLAIMED) - versions_of(name), f"{name} exists everywhere: no guard is needed"
        assert since == "rtx" or since.count(".") == 1


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
