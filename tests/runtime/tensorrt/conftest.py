"""TensorRT-RTX, whose parser and builder run without a GPU, and engines on a simulated device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated_rig import Rig


@pytest.fixture(scope="session")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason='no TensorRT-RTX here: pip install "cospec[rtx]"'
    )


@pytest.fixture
def rig(tiny_pair_for_tensorrt: Callable[[str], Path]) -> Callable[[str], Rig]:
    return lambda form: Rig(tiny_pair_for_tensorrt(form), form)
