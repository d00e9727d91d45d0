"""A session whose pair disagrees about half the time."""

from __future__ import annotations

from typing import Any

import pytest
from arbiters import bundle_with_arbiter, untrained_network

import cospec
from cospec.calibration.arbiter.network_graph import export_arbiter
from cospec.runtime.decoding.session import Session


@pytest.fixture(scope="module")
def session(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A pair that disagrees about half the time, with an untrained arbiter."""
    folder = tmp_path_factory.mktemp("arbiter")
    export_arbiter(untrained_network(tiny_bundle.root), folder / "model.onnx")
    return cospec.load(
        bundle_with_arbiter(tiny_bundle.root, folder / "model.onnx", folder / "tiny")
    )
