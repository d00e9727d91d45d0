"""What every trace of a torch module to ONNX shares."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silence notices of the exporter that a user can do nothing about."""
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
