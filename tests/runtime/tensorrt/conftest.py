"""TensorRT-RTX, whose parser and builder run without a GPU."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason='no TensorRT-RTX here: pip install "cospec[rtx]"'
    )
