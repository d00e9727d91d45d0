"""The weights of a Hugging Face folder that is quantised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .folder_weights import FolderWeights
from .packed_matrix import PackedMatrix, read_matrix
from .packing_config import PackingConfig
from .weights import Stored


class PackedFolderWeights(FolderWeights):
    """The weights of a quantised folder, some of whose parameters are stored as several tensors.

    Args:
        files: its safetensors.
        config: how its matrices are stored.
        module: the transformers module of the folder's configuration.
        dtype: of the tensors that are returned.
    """

    def __init__(
        self, files: tuple[Path, ...], config: PackingConfig, module: Any, dtype: torch.dtype
    ) -> None:
        self._config = config
        super().__init__(files, module, dtype)

    def __getitem__(self, name: str) -> torch.Tensor:
        matrix = self._matrix(name)
        if matrix is None:
            return super().__getitem__(name)
        return torch.from_numpy(matrix.matrix()).to(self._dtype)

    def kind(self, name: str) -> str:
        """Return what the format is called, or `float`."""
        matrix = self._matrix(name)
        return "float" if matrix is None else matrix.kind

    def blocks(self, name: str) -> Iterator[Stored] | None:
        """Return a quantised matrix in its own numbers; see the base class."""
        matrix = self._matrix(name)
        return None if matrix is None else matrix.parts(name)

    def _parts_of(self, name: str) -> set[str]:
        stem = name.removesuffix(".weight")
        packed = {f"{stem}.{part}" for part in self._config.parts} & self._stored.keys()
        if packed and stem != name:
            # The values of int8 formats have the parameter's own name.
            return packed | ({name} & self._stored.keys())
        return super()._parts_of(name)

    def _matrix(self, name: str) -> PackedMatrix | None:
        own = self._name(name)
        stem = own.removesuffix(".weight")
        parts = {stored.removeprefix(f"{stem}."): stored for stored in self._parts_of(own)}
        if not any(part in parts for part in self._config.parts):
            return None
        outputs, inputs = self.shapes[name]
        tensors = {part: self._get(stored) for part, stored in parts.items()}
        return read_matrix(self._config, own, (outputs, inputs), tensors)
