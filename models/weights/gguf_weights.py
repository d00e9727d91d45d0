"""The tensors of a GGUF file, arranged as the transformers module has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError
from ...runtime.bundle.files import format_bytes
from ..gguf import GgufHeader, GgufTensor, read_header, tensor_names
from .gguf_kinds import FLOATS, RECORDS, unpack
from .weights import CHUNK, Stored, Weights

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class GgufWeights(Weights):
    """The weights of a GGUF file.

    transformers' own conversion says which tensor is which parameter and arranges its rows; only the
    numbers of quantised tensors are left as they are.

    Args:
        file: the GGUF file.
        header: of the file.
        module: the transformers module of the file's configuration.
        dtype: of the tensors that are returned.

    Attributes:
        left_over: tensors that the module has no place for.
    """

    def __init__(self, file: Path, header: GgufHeader, module: Any, dtype: torch.dtype) -> None:
        names, self._processor = tensor_names(header, module)
        self._dtype = dtype
        self._file = np.memmap(file, dtype=np.uint8, mode="r")
        self._start = header.data_start
        self._tensors = {names[t.name]: t for t in header.tensors if t.name in names}
        self.left_over = [t.name for t in header.tensors if t.name not in names]
        for tied, source in module.all_tied_weights_keys.items():
            if source in self._tensors:
                self._tensors.setdefault(tied, self._tensors[source])
        super().__init__({name: self._shape(tensor) for name, tensor in self._tensors.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch
        from gguf import GGMLQuantizationType, dequantize

        tensor = self._tensors[name]
        numbers = dequantize(self._rows(tensor), GGMLQuantizationType(tensor.kind))
        # A copy also of what is mapped: torch has no tensors that cannot be written.
        return torch.from_numpy(self._arranged(tensor, numbers).copy()).to(self._dtype)

    def kind(self, name: str) -> str:
        """Return the ggml type."""
        return self._tensors[name].kind_name

    def blocks(self, name: str) -> Iterator[Stored] | None:
        """Return a tensor of a kind in RECORDS in its own numbers; see the base class."""
        tensor = self._tensors[name]
        if tensor.kind_name not in RECORDS or len(tensor.shape) != 2:
            return None
        return self._blocks(tensor)

    def _shape(self, tensor: GgufTensor) -> tuple[int, ...]:
        """Return the shape of a tensor as it is arranged."""
        return self._arranged(tensor, np.empty(tensor.shape[::-1], dtype=np.bool_)).shape

    def _blocks(self, tensor: GgufTensor) -> Iterator[Stored]:
        from gguf import GGMLQuantizationType, dequantize

        inputs, outputs = tensor.shape
        rows = self._rows(tensor)
        # Where the conversion moves rows, it moves their numbers in the same way.
        order = self._arranged(tensor, np.arange(outputs)[:, None]).ravel()
        count = max(1, CHUNK // inputs)
        for start in range(0, outputs, count):
            part = rows[order[start : start + count]]
            yield (
                unpack(tensor.kind_name, part),
                dequantize(part, GGMLQuantizationType(tensor.kind)),
            )

    def _rows(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, mapped: [N, bytes], or [bytes] of a vector."""
        start = self._start + tensor.offset
        data = self._file[start : start + tensor.bytes]
        outputs = math.prod(tensor.shape[1:])
        return data if len(tensor.shape) == 1 else data.reshape(outputs, -1)

    def _arranged(self, tensor: GgufTensor, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array with a row for each output as the conversion arranges the tensor's."""
        arranged: NDArray[Any] = self._processor.process(
            weights=array, name=tensor.name, parsed_parameters={"tensors": {}}
        ).weights
        return arranged


def refuse_unkept(file: Path) -> None:
    """Refuse a file with tensors of a quantised kind that cannot be kept.

    Raises:
        CheckpointError: names the kinds, and what widening would cost.
    """
    counts: Counter[str] = Counter()
    tensors = read_header(file).tensors
    for tensor in tensors:
        counts[tensor.kind_name] += math.prod(tensor.shape)
    unknown = [kind for kind in counts if kind not in RECORDS and kind not in FLOATS]
    if unknown:
        stored = sum(tensor.bytes for tensor in tensors)
        raise CheckpointError(
            f"{file}: weights of the kind {', '.join(unknown)} cannot be kept in their own numbers "
            f"({sum(counts[kind] for kind in unknown) / 1e6:.0f}M of {counts.total() / 1e6:.0f}M "
            "weights).",
            hint=f"--weights fp16 widens all of them: {format_bytes(2 * counts.total())} instead of "
            f"{format_bytes(stored)}. Kinds that are kept: {', '.join(RECORDS)}.",
        )
