"""Bundles of a few bytes, written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_bundles import CONTENTS, make_manifest

from cospec.runtime.bundle import writer as bundle_writer
from cospec.runtime.bundle.writer import BundleWriter


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "models/tiny") -> Path:
        with BundleWriter(tmp_path / name) as writer:
            for relative, contents in CONTENTS.items():
                writer.path(relative).write_bytes(contents)
            return writer.commit(make_manifest())

    return make


@pytest.fixture
def root(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


@pytest.fixture(params=["exchange", "two renames"])
def either_swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(bundle_writer, "exchange_folders", lambda *_: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("folders can be exchanged in one step on Linux only")
    return request.param
