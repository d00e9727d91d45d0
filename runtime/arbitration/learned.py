"""The learned arbiter: a small ONNX graph whose input names say what it reads."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, BundleError
from ..engines.onnxruntime import choose_pool, import_onnxruntime
from ..engines.protocol import StepOutput
from .protocol import Block

_BLOCK = ("drafted", "position", "mismatches", "run")


class BlockGraph:
    """An ONNX graph over a block of k drafted tokens; see `calibration/arbiter/network_graph.py`.

    Args:
        graph: path of the graph.
        output: the output to compute, float [k, ...]; others are ignored.

    Attributes:
        row: shape of the output without k.
        target_outputs: outputs of the target that the graph reads.
        draft_outputs: the same for the draft.

    Raises:
        BackendError: ONNX Runtime cannot load it.
        BundleError: the output is missing or has another type or shape, or the decoders do not provide
            an input.
    """

    def __init__(self, graph: Path, output: str) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # a few thousand multiplications: threads would only wait
        choose_pool(ort, options)
        try:
            self._session = ort.InferenceSession(
                str(graph), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime could not load the arbiter {graph}: {error}"
            ) from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        check_inputs(self._inputs, str(graph))
        self._output, self.row = output, self._row_of(output, str(graph))
        self._bindings: dict[int, _Binding] = {}
        self._lock = Lock()  # sessions on the same engines share the arbiter and its buffers
        self.target_outputs = outputs_of("target", self._inputs)
        self.draft_outputs = outputs_of("draft", self._inputs)

    def run(self, block: Block) -> NDArray[np.float32]:
        """Return the graph's output for `block`."""
        k = len(block.drafted)
        with self._lock:
            binding = self._bindings.get(k)
            if binding is None:
                binding = _Binding(self._session, self._inputs, block, self._output, (k, *self.row))
                self._bindings[k] = binding
            binding.fill(block)
            try:
                self._session.run_with_iobinding(binding.io)
            except Exception as error:
                raise BackendError(f"ONNX Runtime failed in the arbiter: {error}") from error
            output: NDArray[np.float32] = binding.output.copy()  # the next block overwrites it
        return output

    def _row_of(self, output: str, graph: str) -> tuple[int, ...]:
        """Return the shape of the output without k."""
        for value in self._session.get_outputs():
            if value.name == output:
                row = tuple(value.shape[1:])
                if (
                    value.type != "tensor(float)"
                    or not value.shape
                    or not all(isinstance(size, int) for size in row)
                ):
                    raise BundleError(
                        f"the output '{output}' of the arbiter {graph} is {value.type} {value.shape}, "
                        "but must be float [k, ...]",
                        hint=_OTHER_VERSION,
                    )
                return row
        raise BundleError(f"the arbiter {graph} has no output '{output}'", hint=_OTHER_VERSION)


class LearnedArbiter:
    """Scores blocks with the arbiter graph of a bundle.

    Args:
        graph: path of the arbiter's `model.onnx`.

    Raises:
        BackendError: ONNX Runtime cannot load it.
        BundleError: it is not an arbiter of this version of CoSpec.
    """

    def __init__(self, graph: Path) -> None:
        self._graph = BlockGraph(graph, "score")
        if self._graph.row:
            raise BundleError(
                f"the arbiter {graph} scores each token with {list(self._graph.row)} numbers, but must "
                "use one",
                hint=_OTHER_VERSION,
            )
        self.target_outputs = self._graph.target_outputs
        self.draft_outputs = self._graph.draft_outputs

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the score [k] of each position of `block`."""
        return self._graph.run(block)


class _Binding:
    """The buffers of one k: binding arrays again in each call would take longer than copying them."""

    def __init__(
        self, session: Any, inputs: list[str], block: Block, output: str, shape: tuple[int, ...]
    ) -> None:
        self.io = session.io_binding()
        self.output: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._inputs: list[tuple[attrgetter[Any], NDArray[Any]]] = []
        for name in inputs:
            read = reader(name)
            array = np.zeros_like(read(block), order="C")
            self._inputs.append((read, array))
            self.io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        address = self.output.ctypes.data
        self.io.bind_output(output, "cpu", 0, np.float32, self.output.shape, address)

    def fill(self, block: Block) -> None:
        """Copy what the graph reads."""
        for read, array in self._inputs:
            array[...] = read(block)


_OTHER_VERSION = "it was made for another version of CoSpec; calibrate it again"


def check_inputs(names: list[str], graph: str) -> None:
    """Refuse an arbiter with an input that the decoders do not provide.

    Raises:
        BundleError: names the first such input.
    """
    known = {f"block.{what}" for what in _BLOCK}
    known |= {f"{model}.{what}" for model in ("target", "draft") for what in _provided()}
    for name in names:
        if name not in known:
            raise BundleError(
                f"the arbiter {graph} wants the input '{name}', which the decoders do not provide",
                hint=_OTHER_VERSION,
            )


def reader(name: str) -> attrgetter[Any]:
    """Return a function that reads the input `name` from a block, such as `target.entropy`."""
    return attrgetter(name.removeprefix("block."))


def outputs_of(model: str, names: list[str]) -> tuple[str, ...]:
    """Return the outputs of `model` (`target` or `draft`) that an arbiter with these inputs reads."""
    prefix = f"{model}."
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _provided() -> set[str]:
    return set(StepOutput.__dataclass_fields__)
