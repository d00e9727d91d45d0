"""The extras of pyproject.toml: which packages each combination brings, resolved as pip does."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
PROJECT = tomllib.loads(Path(__file__, "../../pyproject.toml").resolve().read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEVELOPERS = ("dev", "docs")
FOR_USERS = [name for name in EXTRAS if name not in (*DEVELOPERS, "cpu", "gpu")]


def brought_by(*extras: str) -> set[str]:
    """Return the names of all packages that `cospec[extras]` asks for itself."""
    found, todo = set(), [Requirement(each) for each in PROJECT["dependencies"]]
    todo.append(Requirement(f"cospec[{','.join(extras)}]"))
    while todo:
        wanted = todo.pop()
        if wanted.name != "cospec":
            found.add(wanted.name)
            continue
        todo += [Requirement(each) for extra in wanted.extras for each in EXTRAS[extra]]
    return found


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_no_combination_brings_two_packages_of_onnx_runtime(backend):
    """All extras together bring what each combination brings, and more."""
    package = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}[backend]
    brought = brought_by(backend, *FOR_USERS)
    assert {name for name in brought if name.startswith("onnxruntime")} == {package}


def test_no_extra_but_the_backends_brings_onnx_runtime():
    assert not any(name.startswith("onnxruntime") for name in brought_by(*FOR_USERS))
    assert "onnxruntime" in brought_by("dev")


def test_the_base_brings_neither_torch_nor_a_backend():
    assert brought_by() == {
        "click",
        "jinja2",
        "msgspec",
        "numpy",
        "packaging",
        "tokenizers",
        "tqdm",
    }
