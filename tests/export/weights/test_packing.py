"""What is packed for the operator is what was unpacked from the file, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gguf_files import quantised

from cospec.export.weights.packing import Form, fill
from cospec.models.weights.blocks import Blocks, Factors
from cospec.models.weights.gguf_kinds import RECORDS, unpack


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("is_split", [False, True])
def test_every_kind_comes_back(kind, is_split):
    blocks = unpack(kind, quantised(kind, 10, 512, np.random.default_rng(1)))
    form = replace(Form.of(blocks), is_split=is_split and blocks.bits in (5, 6))
    parts = [form.pack(blocks.rows(slice(0, 3))), form.pack(blocks.rows(slice(3, 10)))]
    whole = fill(form, 10, parts)
    for name, (dtype, shape) in form.shapes(10).items():
        assert (str(whole[name].dtype), whole[name].shape) == (dtype, shape)
    back = form.unpack(whole)
    assert np.array_equal(back.values, blocks.values)
    assert np.array_equal(back.matrix(), blocks.matrix())
    bits = 8 * sum(array.nbytes for array in whole.values()) / blocks.values.size
    stored = 8 * RECORDS[kind].itemsize * 10 * 512 / kind_weights(kind) / blocks.values.size
    packed_bits = {4: 4, 5: 8, 6: 8, 8: 8}[blocks.bits]
    assert bits <= stored + (0 if form.is_split else packed_bits - blocks.bits) + 0.126


def kind_weights(kind: str) -> int:
    return 256 if kind.endswith("K") else 32


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks_of_a_row", [1, 2, 3])
def test_zero_points_of_each_block_come_back(bits, blocks_of_a_row):
    rng = np.random.default_rng(2)
    shape = (5, blocks_of_a_row * 16)
    blocks = Blocks(
        "test",
        bits,
        16,
        rng.integers(0, 1 << bits, shape, dtype=np.uint8),
        Factors((rng.random((5, blocks_of_a_row, 1)).astype(np.float16),)),
        rng.integers(0, 1 << bits, (5, blocks_of_a_row), dtype=np.uint8),
    )
    form = Form.of(blocks)
    back = form.unpack(fill(form, 5, [form.pack(blocks)]))
    assert np.array_equal(back.matrix(), blocks.matrix())
    assert np.array_equal(back.zero_points, blocks.zero_points)
