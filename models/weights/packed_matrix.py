"""Quantised matrices of Hugging Face folders: GPTQ, AWQ and compressed-tensors.

All three store integers in blocks of inputs, each in a layout of its own:

| | values | zero points | scales |
|---|---|---|---|
| GPTQ | `qweight` int32 [K * bits / 32, N], eight 4-bit inputs in a number | `qzeros`, packed along N; the first version of the format stores one less | `scales` [G, N] |
| AWQ | `qweight` int32 [K, N * bits / 32], eight outputs in a number, in the order 0 2 4 6 1 3 5 7 | `qzeros`, the same | `scales` [G, N] |
| compressed-tensors | `weight_packed` int32 [N, K * bits / 32], or `weight` int8 [N, K]; both signed | `weight_zero_point`, packed along N | `weight_scale` [N, G] |

`g_idx` says which group an input belongs to, where inputs were quantised in the order of their activations.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import CheckpointError
from .blocks import Blocks, Factors
from .packing_config import PackingConfig
from .weights import CHUNK, Stored

_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 256


@dataclass(frozen=True)
class PackedMatrix:
    """A quantised matrix as a folder stores it, in a common form.

    Attributes:
        kind: what the certificate calls it.
        bits: width of a value.
        shape: outputs N and inputs K.
        values: returns the values of some outputs, uint8 [n, K].
        scales: [N, G].
        zero_points: one for all, or uint8 [N, G].
        groups: int64 [K], the group of each input.
    """

    kind: str
    bits: int
    shape: tuple[int, int]
    values: Callable[[slice], NDArray[np.uint8]]
    scales: NDArray[Any]
    zero_points: int | NDArray[np.uint8]
    groups: NDArray[np.int64]

    def parts(self, name: str) -> Iterator[Stored]:
        """Return the matrix in its own numbers, a few outputs at a time; see `Weights.blocks`."""
        outputs, inputs = self.shape
        size = self._group_size(name)
        block = max(1, size & -size)  # the largest power of two that divides it
        block = min(block, _LARGEST_BLOCK)
        if block < _SMALLEST_BLOCK:
            raise CheckpointError(
                f"{name} is quantised in groups of {size} inputs; groups must be multiples of "
                f"{_SMALLEST_BLOCK}.",
                hint="--weights fp16 makes plain numbers of the weights.",
            )
        order = np.argsort(self.groups, kind="stable")
        is_sorted = bool((order == np.arange(inputs)).all())
        # Of a scale for a group: a scale for each of its blocks.
        scales = np.repeat(self.scales, size // block, axis=1)
        zeros = self.zero_points
        if not isinstance(zeros, int):
            zeros = np.repeat(zeros, size // block, axis=1)
        count = max(1, CHUNK // inputs)
        for start in range(0, outputs, count):
            rows = slice(start, min(start + count, outputs))
            values = self.values(rows)
            blocks = Blocks(
                self.kind,
                self.bits,
                block,
                values if is_sorted else np.ascontiguousarray(values[:, order]),
                Factors((scales[rows, :, None],)),
                zeros if isinstance(zeros, int) else zeros[rows],
                order=None if is_sorted else order,
            )
            yield blocks, self._dequantised(values, rows)

    def matrix(self) -> NDArray[np.float32]:
        """Return the weights, float32 [N, K], as the library that wrote them computes them."""
        outputs, inputs = self.shape
        whole = np.empty(self.shape, dtype=np.float32)
        for start in range(0, outputs, max(1, CHUNK // inputs)):
            rows = slice(start, min(start + max(1, CHUNK // inputs), outputs))
            whole[rows] = self._dequantised(self.values(rows), rows)
        return whole

    def _dequantised(self, values: NDArray[np.uint8], rows: slice) -> NDArray[np.float32]:
        zeros = self.zero_points
        centred = values.astype(np.float32)
        centred -= zeros if isinstance(zeros, int) else zeros[rows][:, self.groups]
        centred *= self.scales[rows].astype(np.float32)[:, self.groups]
        return centred

    def _group_size(self, name: str) -> int:
        """Return how many inputs a group has.

        Raises:
            CheckpointError: not all groups have as many, or their number is not that of the scales.
        """
        counts = np.bincount(self.groups, minlength=self.scales.shape[1])
        if len(counts) != self.scales.shape[1] or (counts != counts[0]).any():
            raise CheckpointError(
                f"{name}: its {len(self.groups)} inputs are not divided evenly among "
                f"{self.scales.shape[1]} groups.",
                hint="The file is damaged, or was made by a broken tool: download it again.",
            )
        return int(counts[0])


def read_matrix(
    config: PackingConfig, name: str, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]
) -> PackedMatrix:
    """Read a matrix.

    Args:
        config: the folder's format.
        name: of the matrix, for errors.
        shape: outputs and inputs.
        tensors: that make it up, by the last parts of their names.

    Raises:
        CheckpointError: a tensor is missing or of another shape than the matrix needs.
    """
    for part, expected in _shapes(config, shape, tensors).items():
        found = tuple(tensors[part].shape) if part in tensors else None
        if found != expected:
            what = "is missing" if found is None else f"is {found} instead of {expected}"
            raise CheckpointError(
                f"{name.removesuffix('.weight')}.{part} {what}, which a {config.kind} matrix of "
                f"{shape[0]} outputs and {shape[1]} inputs needs.",
                hint="The folder is damaged, or its config.json belongs to another model.",
            )
    if config.method == "gptq":
        return _gptq(config, shape, tensors)
    if config.method == "awq":
        return _awq(config.kind, shape, tensors)
    return _compressed(config, shape, tensors)


def _shapes(
    config: PackingConfig, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a matrix must have, and their shapes."""
    outputs, inputs = shape
    per_number = 32 // config.bits
    if config.method == "compressed-tensors":
        scales = tensors.get("weight_scale")
        expected = {"weight_scale": () if scales is None else tuple(scales.shape)}
        if "weight" in tensors:
            return {"weight": (outputs, inputs), **expected}
        return {"weight_packed": (outputs, math.ceil(inputs / per_number)), **expected}
    groups = tensors["scales"].shape[0] if "scales" in tensors else 1
    packed = (inputs, outputs // per_number)
    if config.method == "gptq":
        packed = (inputs // per_number, outputs)
    zeros = (groups, math.ceil(outputs / per_number))
    return {"qweight": packed, "scales": (groups, outputs), "qzeros": zeros}


def _gptq(
    config: PackingConfig, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]
) -> PackedMatrix:
    outputs, inputs = shape
    bits = config.bits
    packed = tensors["qweight"].numpy().view(np.uint32)
    groups = tensors["scales"].shape[0]

    def values(rows: slice) -> NDArray[np.uint8]:
        return unpack_words(np.ascontiguousarray(packed[:, rows].T), bits)[:, :inputs]

    # gptqmodel and auto-round subtract the offset from whole words, so a zero point of 0 borrows from
    # the next one.
    offset = np.uint32(0xFFFFFFFF // ((1 << bits) - 1) * config.zero_offset)
    zeros = unpack_words(tensors["qzeros"].numpy().view(np.uint32) + offset, bits)[:, :outputs]
    order = tensors.get("g_idx")
    return PackedMatrix(
        config.kind,
        bits,
        shape,
        values,
        np.ascontiguousarray(as_numpy(tensors["scales"]).T),
        common(np.ascontiguousarray(zeros.T)),
        even_groups(inputs, groups) if order is None else order.numpy().astype(np.int64),
    )


def _awq(kind: str, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]) -> PackedMatrix:
    outputs, inputs = shape
    packed = tensors["qweight"].numpy().view(np.uint32)
    # Of the eight values of a number, which one is output 0, 1, and so on.
    place = np.argsort(_AWQ_ORDER)

    def unpacked(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
        values = unpack_words(words, 4).reshape(len(words), -1, 8)[:, :, place]
        return np.ascontiguousarray(values.reshape(len(words), -1).T)

    def values(rows: slice) -> NDArray[np.uint8]:
        first = rows.start // 8
        wide = unpacked(packed[:, first : -(-rows.stop // 8)])
        return wide[rows.start - 8 * first : rows.stop - 8 * first]

    scales = tensors["scales"]
    return PackedMatrix(
        kind,
        4,
        shape,
        values,
        np.ascontiguousarray(as_numpy(scales).T),
        common(unpacked(tensors["qzeros"].numpy().view(np.uint32))[:outputs]),
        even_groups(inputs, scales.shape[0]),
    )


def _compressed(
    config: PackingConfig, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]
) -> PackedMatrix:
    outputs, inputs = shape
    bits, packed = config.bits, tensors.get("weight_packed")
    if packed is not None:
        words = packed.numpy().view(np.uint32)

        def values(rows: slice) -> NDArray[np.uint8]:
            return unpack_words(np.ascontiguousarray(words[rows]), bits)[:, :inputs]
    else:
        signed = tensors["weight"].numpy()

        def values(rows: slice) -> NDArray[np.uint8]:
            moved: NDArray[np.uint8] = signed[rows].view(np.uint8) ^ np.uint8(0x80)
            return moved

    # A scale for each group [N, G], for each output [N, 1], or for the whole matrix [1].
    scales = as_numpy(tensors["weight_scale"])
    scales = scales.reshape(-1, scales.shape[-1] if scales.ndim > 1 else 1)
    scales = np.broadcast_to(scales, (outputs, scales.shape[1]))
    zeros: int | NDArray[np.uint8] = 1 << bits - 1
    stored = tensors.get("weight_zero_point")
    if stored is not None and stored.dtype == torch.int32:
        words_of = np.ascontiguousarray(stored.numpy().view(np.uint32).T)
        zeros = common(np.ascontiguousarray(unpack_words(words_of, bits)[:, :outputs].T))
    elif stored is not None:
        points = stored.numpy().astype(np.int16).reshape(-1, scales.shape[1]) + (1 << bits - 1)
        zeros = common(np.broadcast_to(points, scales.shape).astype(np.uint8))
    order = tensors.get("weight_g_idx")
    groups = even_groups(inputs, scales.shape[1])
    if order is not None and int(order[0]) >= 0:
        groups = order.numpy().astype(np.int64)
    return PackedMatrix(config.kind, bits, shape, values, scales, zeros, groups)


def unpack_words(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Return the values [n, 32 m / bits] of words [n, m], the first in the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values: NDArray[np.uint32] = words[:, :, None] >> shifts
    narrow: NDArray[np.uint8] = (values & np.uint32((1 << bits) - 1)).astype(np.uint8)
    return narrow.reshape(len(words), -1)


def even_groups(inputs: int, groups: int) -> NDArray[np.int64]:
    """Return the group of each input where they are in order."""
    return np.arange(inputs, dtype=np.int64) * groups // inputs


def common(zeros: NDArray[np.uint8]) -> int | NDArray[np.uint8]:
    """Return the zero points, or the only one that they all are."""
    first = int(zeros.flat[0])
    return first if bool((zeros == first).all()) else zeros


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array of its own type."""
    if tensor.dtype != torch.bfloat16:
        array: NDArray[Any] = tensor.numpy()
        return array
    import ml_dtypes

    bfloat16: NDArray[Any] = tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return bfloat16
