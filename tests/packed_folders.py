"""Quantised Hugging Face folders, packed as GPTQ, AWQ and compressed-tensors pack them.

Packed number by number, so that a mistake is not shared with the code that unpacks whole arrays.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(values: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Pack values along the last axis into 32-bit numbers, the first into the lowest bits.

    A value of -1 borrows from the next one, as in the files of gptqmodel and auto-round.
    """
    per_word = 32 // bits
    words = np.zeros((*values.shape[:-1], -(-values.shape[-1] // per_word)), dtype=np.int64)
    for index in np.ndindex(values.shape):
        word = (*index[:-1], index[-1] // per_word)
        words[word] += int(values[index]) << (index[-1] % per_word) * bits
    return (words & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


class Matrix:
    """A random matrix in integers: weight = scale * (value - zero_point), by groups of inputs.

    Args:
        outputs: N.
        inputs: K.
        bits: of a value.
        rng: of the numbers.
        group: inputs of a group.
        has_zeros: zero points of groups, instead of the middle for all.
        is_shuffled: groups that are not in the order of the inputs.
    """

    def __init__(
        self,
        outputs: int,
        inputs: int,
        bits: int,
        rng: np.random.Generator,
        *,
        group: int = GROUP,
        has_zeros: bool = True,
        is_shuffled: bool = False,
    ) -> None:
        groups = inputs // group
        self.bits = bits
        self.values = rng.integers(0, 1 << bits, (outputs, inputs))
        spread = 0.4 / (1 << bits)
        self.scales = (spread * (0.5 + rng.random((outputs, groups)))).astype(np.float16)
        middle = 1 << bits - 1
        self.zeros = np.full((outputs, groups), middle)
        if has_zeros:
            self.zeros = rng.integers(0, 1 << bits, (outputs, groups))
        self.g_idx = np.arange(inputs) // group
        if is_shuffled:
            rng.shuffle(self.g_idx)

    def weight(self) -> torch.Tensor:
        """Return the weights in single precision."""
        zeros, scales = (each[:, self.g_idx] for each in (self.zeros, self.scales))
        return torch.from_numpy(
            (self.values - zeros).astype(np.float32) * scales.astype(np.float32)
        )


def gptq(stem: str, matrix: Matrix, version: int = 1) -> Tensors:
    """Return what GPTQ stores."""
    zeros = matrix.zeros.T - (1 if version == 1 else 0)
    return {
        f"{stem}.qweight": torch.from_numpy(packed(matrix.values, matrix.bits).T.copy()),
        f"{stem}.qzeros": torch.from_numpy(packed(zeros, matrix.bits)),
        f"{stem}.scales": torch.from_numpy(matrix.scales.T.copy()),
        f"{stem}.g_idx": torch.from_numpy(matrix.g_idx.astype(np.int32)),
    }


def awq(stem: str, matrix: Matrix) -> Tensors:
    """Return what AWQ stores."""

    def interleaved(values: NDArray[Any]) -> torch.Tensor:
        ordered = np.empty_like(values)
        for column in range(values.shape[1]):
            first = column - column % 8
            ordered[:, column] = values[:, first + AWQ_ORDER[column % 8]]
        return torch.from_numpy(packed(ordered, 4))

    return {
        f"{stem}.qweight": interleaved(matrix.values.T.copy()),
        f"{stem}.qzeros": interleaved(matrix.zeros.T.copy()),
        f"{stem}.scales": torch.from_numpy(matrix.scales.T.copy()),
    }


def pack_quantized(stem: str, matrix: Matrix, *, has_zeros: bool) -> Tensors:
    """Return what compressed-tensors stores of packed integers."""
    tensors = {
        f"{stem}.weight_packed": torch.from_numpy(packed(matrix.values, matrix.bits)),
        f"{stem}.weight_scale": torch.from_numpy(matrix.scales.copy()),
        f"{stem}.weight_shape": torch.tensor(matrix.values.shape),
    }
    if has_zeros:
        zeros = packed(matrix.zeros.T.copy(), matrix.bits).T.copy()
        tensors[f"{stem}.weight_zero_point"] = torch.from_numpy(zeros)
    return tensors


def int_quantized(stem: str, matrix: Matrix) -> Tensors:
    """Return what compressed-tensors stores of int8 numbers."""
    return {
        f"{stem}.weight": torch.from_numpy((matrix.values - 128).astype(np.int8)),
        f"{stem}.weight_scale": torch.from_numpy(matrix.scales.copy()),
    }


def compressed_config(form: str, bits: int, **weights: Any) -> dict[str, Any]:
    """Return the quantization_config of compressed-tensors."""
    scheme = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", **weights}
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def quantised_folder(
    plain: Path,
    folder: Path,
    config: dict[str, Any] | None,
    matrix_of: Callable[[int, int], Matrix],
    store: Callable[[str, Matrix], Tensors],
) -> tuple[Path, Path]:
    """Write two folders from a plain one: with quantised matrices, and with the same dequantised.

    Args:
        plain: a checkpoint with separate projections, such as a Llama.
        folder: where both go.
        config: quantization_config; None leaves it out.
        matrix_of: returns a random matrix of so many outputs and inputs.
        store: returns what the format stores of a matrix.
    """
    quantised, dequantised = folder / "quantised", folder / "dequantised"
    for copy in (quantised, dequantised):
        shutil.copytree(plain, copy)
    tensors = load_file(plain / "model.safetensors")
    stored: Tensors = {}
    for name, stem in list(_projections(tensors)):
        matrix = matrix_of(*tensors[name].shape)
        tensors[name] = matrix.weight()
        stored |= store(stem, matrix)
    others = {name: t for name, t in tensors.items() if not _is_projection(name)}
    save_file(tensors, dequantised / "model.safetensors", metadata={"format": "pt"})
    save_file(stored | others, quantised / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((plain / "config.json").read_text())
    if config is not None:
        raw["quantization_config"] = config
    (quantised / "config.json").write_text(json.dumps(raw))
    return quantised, dequantised


def _projections(tensors: Tensors) -> Iterator[tuple[str, str]]:
    return ((name, name.removesuffix(".weight")) for name in tensors if _is_projection(name))


def _is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")
