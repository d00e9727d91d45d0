"""A weight in, its quantised tensors out: the numbers are those of ONNX Runtime's own quantisers.

Its tools for whole models hold all weights in memory several times over, and write temporary copies
beside the source. So this works weight by weight: blocks by their inner function, channels by their
formula, for which they loop over columns in Python. The tests compare both with what the tools make of
a whole graph, bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import Blockwise

_LARGEST, _LARGEST_OF_SEVEN_BITS = 127, 64


def quantise_channels(
    weight: NDArray[np.float32], *, reduce_range: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise each output channel with a scale of its own, as `quantize_dynamic` does.

    Args:
        weight: [K, N].
        reduce_range: keep to seven bits, -64 to 64; see `formats.products_saturate`.

    Returns:
        int8 [K, N] and scales [N].
    """
    largest = _LARGEST_OF_SEVEN_BITS if reduce_range else _LARGEST
    # In double precision, as there: single would round some scales another way.
    scales = (np.abs(weight).max(axis=0) / np.float64(largest)).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1.0  # a channel of zeros
    packed = np.rint(weight / scales).clip(-largest, largest).astype(np.int8)
    return packed, scales


def quantise_blocks(weight: NDArray[np.float32], form: Blockwise) -> dict[str, NDArray[Any]]:
    """Quantise blocks of inputs, as `MatMulNBitsQuantizer` does.

    Args:
        weight: [K, N].
        form: bits and block.

    Returns:
        The operator's tensors by name: `packed` uint8 [N, blocks, bytes], `scales` float32
        [N, blocks] and, unless the form is symmetric, `zero_points` uint8.
    """
    with _logging_unchanged():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )

    config = DefaultWeightOnlyQuantConfig(
        block_size=form.block, is_symmetric=form.is_symmetric, bits=form.bits
    )
    quantiser = DefaultWeightOnlyQuantizer(config)
    packed, scales, zero_points = quantiser.qbits_block_quant(np.ascontiguousarray(weight))
    tensors = {"packed": packed, "scales": scales}
    return tensors if form.is_symmetric else {**tensors, "zero_points": zero_points}


@contextmanager
def _logging_unchanged() -> Iterator[None]:
    """Undo what importing ONNX Runtime's quantisers does to the process's root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
