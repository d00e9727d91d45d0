"""A bundle for the kit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def bundle(tiny_pair_for_tensorrt: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair_for_tensorrt("scatter"), tmp_path / "tiny"))
