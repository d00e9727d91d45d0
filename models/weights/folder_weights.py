"""The weights of a Hugging Face folder, read from its files by the names of the parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .weights import Weights


class FolderWeights(Weights):
    """The weights of a folder whose tensors have the names of the module's parameters.

    A file is mapped only while a tensor is read: mapped pages count as memory of the process.

    Args:
        files: its safetensors.
        module: the transformers module of the folder's configuration.
        dtype: of the tensors that are returned.

    Attributes:
        left_over: tensors that the module has no place for.
    """

    def __init__(self, files: tuple[Path, ...], module: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._ties = module.all_tied_weights_keys
        self._stored: dict[str, Path] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with _opened(file) as tensors:
                names = tensors.keys()
                self._stored |= dict.fromkeys(names, file)
                sizes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        shapes, used = {}, set[str]()
        for name, parameter in module.named_parameters(remove_duplicate=False):
            parts = self._parts_of(name) or self._parts_of(self._ties.get(name, ""))
            if len(parts) == 1:
                (stored,) = parts
                shapes[name] = sizes[stored]
            elif parts:  # the shapes of packed tensors are checked when they are read
                shapes[name] = tuple(parameter.shape)
            used |= parts
        super().__init__(shapes)
        self.left_over = sorted(self._stored.keys() - used)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._get(self._name(name)).to(self._dtype)

    def kind(self, name: str) -> str:
        """Return 'float': which one, no reader needs to know."""
        return "float"

    def _name(self, name: str) -> str:
        """Return the name that a tensor is stored under, or its matrix's tensors begin with."""
        return name if self._parts_of(name) else str(self._ties[name])

    def _parts_of(self, name: str) -> set[str]:
        """Return the stored tensors that make up a parameter."""
        return {name} & self._stored.keys()

    def _get(self, stored: str) -> torch.Tensor:
        with _opened(self._stored[stored]) as tensors:
            tensor: torch.Tensor = tensors.get_tensor(stored)
            return tensor


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt")
