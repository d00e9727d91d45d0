"""The quantised kinds of GGUF, unpacked into their integers, scales and minima.

Each kind is an array of records, a record a block (K-quants: a block of blocks). Layouts:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, Factors

_BLOCK, _SIXTEENTH = 32, 16
"""Inputs that share a scale: of all kinds but Q6_K, and of Q6_K."""

_HALF, _BYTE = np.float16, np.uint8
_K_SCALES = [("d", _HALF), ("dmin", _HALF), ("scales", _BYTE, 12)]

FLOATS = ("F64", "F32", "F16", "BF16")
"""Kinds of plain numbers."""

RECORDS: dict[str, np.dtype[Any]] = {
    "Q4_0": np.dtype([("d", _HALF), ("low", _BYTE, 16)]),
    "Q4_1": np.dtype([("d", _HALF), ("m", _HALF), ("low", _BYTE, 16)]),
    "Q5_0": np.dtype([("d", _HALF), ("high", _BYTE, 4), ("low", _BYTE, 16)]),
    "Q5_1": np.dtype([("d", _HALF), ("m", _HALF), ("high", _BYTE, 4), ("low", _BYTE, 16)]),
    "Q8_0": np.dtype([("d", _HALF), ("values", np.int8, 32)]),
    "Q4_K": np.dtype([*_K_SCALES, ("low", _BYTE, 128)]),
    "Q5_K": np.dtype([*_K_SCALES, ("high", _BYTE, 32), ("low", _BYTE, 128)]),
    "Q6_K": np.dtype(
        [("low", _BYTE, 128), ("high", _BYTE, 64), ("scales", np.int8, 16), ("d", _HALF)]
    ),
}
"""The kinds that are kept, each with the record that it is stored in."""


def unpack(kind: str, data: NDArray[np.uint8]) -> Blocks:
    """Return a quantised matrix in its own numbers.

    Args:
        kind: a key of RECORDS.
        data: the bytes of each row, [N, bytes].
    """
    records = np.ascontiguousarray(data).view(RECORDS[kind])
    return _UNPACK[kind](kind, records)


def _small(kind: str, records: NDArray[Any]) -> Blocks:
    """Q4_0, Q4_1, Q5_0 and Q5_1: 32 values; the low four bits of i and i + 16 share a byte."""
    bits = int(kind[1])
    values = _nibbles(records["low"])  # [N, blocks, 32]
    if bits == 5:
        values |= np.unpackbits(records["high"], axis=-1, bitorder="little") << np.uint8(4)
    has_minimum = kind.endswith("1")
    return Blocks(
        kind,
        bits,
        _BLOCK,
        values.reshape(len(records), -1),
        Factors((records["d"][:, :, None],)),
        0 if has_minimum else 1 << bits - 1,
        Factors((-records["m"][:, :, None],)) if has_minimum else None,
    )


def _q8_0(kind: str, records: NDArray[Any]) -> Blocks:
    values = (records["values"].view(np.uint8) ^ np.uint8(0x80)).reshape(len(records), -1)
    return Blocks(kind, 8, _BLOCK, values, Factors((records["d"][:, :, None],)), 128)


def _with_minima(kind: str, records: NDArray[Any]) -> Blocks:
    """Q4_K and Q5_K: eight blocks of 32; the low four bits of two blocks share their bytes."""
    count, groups = records.shape
    bits = int(kind[1])
    values = _nibbles(records["low"].reshape(count, groups, 4, 32))  # [N, groups, 4, 64]
    if bits == 5:
        high = records["high"][:, :, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        values |= (high << 4).reshape(values.shape)
    first, second, third = np.moveaxis(records["scales"].reshape(count, groups, 3, 4), 2, 0)
    # Six bits each: of the first four blocks in a byte of their own, of the last four spread over two.
    scales = np.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=-1)
    return Blocks(
        kind,
        bits,
        _BLOCK,
        values.reshape(count, -1),
        Factors((records["d"][:, :, None], scales)),
        0,
        Factors((records["dmin"][:, :, None], minima)),
    )


def _q6_k(kind: str, records: NDArray[Any]) -> Blocks:
    """Sixteen blocks of 16, in two halves of 128 values."""
    count, groups = records.shape
    values = _nibbles(records["low"].reshape(count, groups, 2, 64))  # [N, groups, 2, 128]
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = records["high"].reshape(count, groups, 2, 1, 32) >> shifts & 3
    values |= (high << 4).reshape(values.shape)
    scales = Factors((records["d"][:, :, None], records["scales"]))
    return Blocks(kind, 6, _SIXTEENTH, values.reshape(count, -1), scales, 32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the low halves of bytes [..., n], and after them their high halves, [..., 2n]."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


_UNPACK: dict[str, Callable[[str, NDArray[Any]], Blocks]] = {
    "Q4_0": _small,
    "Q4_1": _small,
    "Q5_0": _small,
    "Q5_1": _small,
    "Q8_0": _q8_0,
    "Q4_K": _with_minima,
    "Q5_K": _with_minima,
    "Q6_K": _q6_k,
}
