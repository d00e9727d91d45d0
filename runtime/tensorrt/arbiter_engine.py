"""The learned arbiter as a TensorRT engine, for devices without ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ..arbitration.learned import check_inputs, outputs_of, reader
from ..arbitration.protocol import Block
from .cuda import Cuda, DeviceMemory, Stream, pinned
from .plan import Context, Plan, scratch_bytes

_WHAT = "the arbiter's plan"


class TensorRtArbiter:
    """Scores blocks with a plan of the arbiter's graph, which `LearnedArbiter` describes.

    Args:
        plan: the serialised engine. It is executable code: the caller has checked its hash.
        trt: the module `tensorrt` or `tensorrt_rtx`.
        cuda: the module `cuda.bindings.runtime`.

    Raises:
        BackendError: no GPU, or TensorRT cannot load the plan.
        BundleError: it has an input that the decoders do not provide.
    """

    def __init__(self, plan: bytes, *, trt: Any, cuda: Any) -> None:
        device = Cuda(cuda)
        self._plan = Plan(plan, trt=trt, cuda=device, what=_WHAT)
        tensors = self._plan.tensors
        inputs = [name for name, tensor in tensors.items() if tensor.is_input]
        check_inputs(inputs, _WHAT)
        self._readers = {name: reader(name) for name in inputs}
        self.target_outputs = outputs_of("target", inputs)
        self.draft_outputs = outputs_of("draft", inputs)
        self._stream = stream = Stream(device)
        ((_, self._longest),) = self._plan.widths("block.drafted", axis=0)
        self._host = {
            name: pinned(device, (self._longest, *tensor.shape[1:]), tensor.dtype)
            for name, tensor in tensors.items()
        }
        self._device = {name: DeviceMemory(stream, a.nbytes) for name, a in self._host.items()}
        scratch = DeviceMemory(stream, scratch_bytes(self._plan))
        self._context = Context(self._plan, 0, scratch, stream)
        self._context.bind({name: memory.address for name, memory in self._device.items()})

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the score [k] of each position of `block`.

        Raises:
            BackendError: the block is longer than the plan accepts, or the GPU failed.
        """
        k = len(block.drafted)
        if k > self._longest:
            raise BackendError(
                f"{_WHAT} accepts blocks of up to {self._longest} tokens, not {k}",
                hint="draft fewer tokens per round",
            )
        for name, read in self._readers.items():
            rows = self._host[name][:k]
            rows[...] = read(block)
            self._stream.upload(self._device[name].address, rows)
        self._context.reshape({name: self._host[name][:k].shape for name in self._readers})
        self._context.enqueue()
        scores: NDArray[np.float32] = self._host["score"][:k]
        self._stream.download(scores, self._device["score"].address)
        self._stream.synchronize()
        return np.array(scores)
