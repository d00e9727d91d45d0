"""The weights of a Hugging Face folder that is quantised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .packed_matrix import PackedMatrix, read_matrix
from .packing_config import PackingConfig
from .weights import Stored, Weights


class PackedFolderWeights(Weights):
    """The weights of a quantised Hugging Face folder.

    Args:
        files: its safetensors.
        config: how its matrices are stored.
        module: the transformers module of the folder's configuration.
        dtype: of the tensors that are returned.

    Attributes:
        left_over: tensors that the module has no place for.
    """

    def __init__(
        self, files: tuple[Path, ...], config: PackingConfig, module: Any, dtype: torch.dtype
    ) -> None:
        from safetensors import safe_open

        self._config, self._dtype = config, dtype
        self._files: list[Any] = [safe_open(file, framework="pt") for file in files]
        self._stored = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        ties = module.all_tied_weights_keys
        shapes, used = {}, set[str]()
        for name, parameter in module.named_parameters(remove_duplicate=False):
            parts = self._parts_of(name) or self._parts_of(ties.get(name, ""))
            if len(parts) == 1:
                (stored,) = parts
                shapes[name] = tuple(self._stored[stored].get_slice(stored).get_shape())
            elif parts:  # the shapes of packed tensors are checked when they are read
                shapes[name] = tuple(parameter.shape)
            used |= parts
        super().__init__(shapes)
        self._ties = ties
        self.left_over = sorted(self._stored.keys() - used)

    def __getitem__(self, name: str) -> torch.Tensor:
        matrix = self._matrix(name)
        if matrix is not None:
            return torch.from_numpy(matrix.matrix()).to(self._dtype)
        return self._get(self._name(name)).to(self._dtype)

    def kind(self, name: str) -> str:
        """Return what the format is called, or `float`."""
        matrix = self._matrix(name)
        return "float" if matrix is None else matrix.kind

    def blocks(self, name: str) -> Iterator[Stored] | None:
        """Return a quantised matrix in its own numbers; see the base class."""
        matrix = self._matrix(name)
        return None if matrix is None else matrix.parts(name)

    def _name(self, name: str) -> str:
        """Return the name that a tensor is stored under, or its matrix's tensors begin with."""
        return name if self._parts_of(name) else str(self._ties[name])

    def _parts_of(self, name: str) -> set[str]:
        """Return the stored tensors that make up a parameter."""
        stem = name.removesuffix(".weight")
        packed = {f"{stem}.{part}" for part in self._config.parts} & self._stored.keys()
        if packed and stem != name:
            # The values of int8 formats have the parameter's own name.
            return packed | ({name} & self._stored.keys())
        return {name} & self._stored.keys()

    def _matrix(self, name: str) -> PackedMatrix | None:
        own = self._name(name)
        stem = own.removesuffix(".weight")
        parts = {stored.removeprefix(f"{stem}."): stored for stored in self._parts_of(own)}
        if not any(part in parts for part in self._config.parts):
            return None
        outputs, inputs = self.shapes[name]
        tensors = {part: self._get(stored) for part, stored in parts.items()}
        return read_matrix(self._config, own, (outputs, inputs), tensors)

    def _get(self, stored: str) -> torch.Tensor:
        tensor: torch.Tensor = self._stored[stored].get_tensor(stored)
        return tensor
