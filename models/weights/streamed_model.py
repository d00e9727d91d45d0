"""A checkpoint's module whose weights stay in their files: memory for one layer, whatever the size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import audit, from_files, load_module
from ..gguf import read_header
from ..hf import blaming, quiet, transformers_class
from .folder_weights import FolderWeights
from .gguf_weights import GgufWeights
from .packed_folder import PackedFolderWeights
from .weights import Weights

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


@dataclass(frozen=True)
class StreamedModel:
    """A model of which no more than a layer is in memory.

    Attributes:
        module: the transformers module; each of its layers reads its weights when it is called.
        hollow: a module of the same configuration. Its weights have the right shapes and no meaning,
            and take no memory as long as nobody reads them.
        weights: by the name of the module's parameter.
    """

    module: Any
    hollow: Any
    weights: Weights


@contextmanager
def streamed_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[StreamedModel]:
    """Open a checkpoint without reading its weights.

    Args:
        checkpoint: from `open_checkpoint`.
        dtype: of the weights when they are read.

    Raises:
        CheckpointError: the weights do not fit the architecture.
    """
    if checkpoint.adapter is not None:  # is merged into weights that are in memory
        whole = load_module(checkpoint, dtype)
        yield StreamedModel(whole, whole, _LoadedWeights(whole))
        return
    hollow = hollow_module(checkpoint, dtype)
    if checkpoint.gguf_file or checkpoint.packing:
        module, quantised = _from_quantised(checkpoint, dtype)
        yield StreamedModel(module, hollow, quantised)
        return
    weights = FolderWeights(checkpoint.weight_files, hollow, dtype)
    if _fits(hollow, weights):
        yield StreamedModel(module_of(checkpoint, dtype, weights), hollow, weights)
        return
    # transformers knows how old names become new ones, and what is wrong with a folder.
    with TemporaryDirectory(prefix="cospec-") as folder:
        module = from_files(checkpoint, dtype=dtype, device_map={"": "disk"}, offload_folder=folder)
        module = module.eval().requires_grad_(False)
        yield StreamedModel(module, hollow, _ConvertedWeights(module))


def hollow_module(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return the module of a checkpoint's configuration with weights that hold nothing."""
    module = _meta_module(checkpoint, dtype)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            # The system gives a page of memory when it is first touched, which nobody does.
            empty = torch.empty_like(parameter, device="cpu")
            part.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))
    module.tie_weights()
    return module.eval()


def _meta_module(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return the module with weights that have shapes alone, and buffers as they are computed."""
    from accelerate import init_empty_weights

    auto = transformers_class("AutoModelForCausalLM")
    config = copy.deepcopy(checkpoint.config)
    # The architecture alone: quantised matrices are not read by transformers.
    config.__dict__.pop("quantization_config", None)
    with quiet(), blaming(checkpoint.path, "transformers cannot build it"), init_empty_weights():
        return auto.from_config(
            config,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=False,
        )


def module_of(checkpoint: Checkpoint, dtype: torch.dtype, weights: Weights) -> Any:
    """Return the module of a checkpoint's configuration, which reads each weight when it needs it."""
    return _offloaded(_meta_module(checkpoint, dtype), weights)


def _offloaded(module: Any, weights: Weights) -> Any:
    from accelerate import cpu_offload

    cpu_offload(module, torch.device("cpu"), state_dict=weights)
    return module.eval().requires_grad_(False)


def _fits(module: Any, weights: FolderWeights) -> bool:
    """Say whether a folder holds exactly the module's parameters, under their own names."""
    parameters = module.named_parameters(remove_duplicate=False)
    found = {name: tuple(parameter.shape) for name, parameter in parameters}
    return not weights.left_over and found == weights.shapes


def _from_quantised(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, Weights]:
    module = _meta_module(checkpoint, dtype)
    weights: GgufWeights | PackedFolderWeights
    if checkpoint.packing is None:
        weights = GgufWeights(checkpoint.path, read_header(checkpoint.path), module, dtype)
    else:
        weights = PackedFolderWeights(checkpoint.weight_files, checkpoint.packing, module, dtype)
    _audit_names(checkpoint, module, weights, weights.left_over)
    return _offloaded(module, weights), weights


def _audit_names(
    checkpoint: Checkpoint, module: Any, weights: Weights, left_over: list[str]
) -> None:
    """Refuse weights that are not exactly the module's parameters; errors as in `audit`."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    audit(
        checkpoint,
        missing=[name for name in parameters if name not in weights],
        left_over=left_over,
        mismatched=[
            name
            for name, parameter in parameters.items()
            if name in weights and weights.shapes[name] != tuple(parameter.shape)
        ],
    )


class _LoadedWeights(Weights):
    """The weights of a module in memory."""

    def __init__(self, module: Any) -> None:
        named = module.named_parameters(remove_duplicate=False)
        super().__init__({name: tuple(parameter.shape) for name, parameter in named})
        self._module = module

    def __getitem__(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._module.get_parameter(name)
        return value

    def kind(self, name: str) -> str:
        """Return 'float': which one, no reader needs to know."""
        return "float"


class _ConvertedWeights(_LoadedWeights):
    """The weights of a Hugging Face folder, as transformers converts them for a module on the disk."""

    def __getitem__(self, name: str) -> torch.Tensor:
        from transformers.integrations.accelerate import load_offloaded_parameter

        value: torch.Tensor = load_offloaded_parameter(self._module, name)
        return value
