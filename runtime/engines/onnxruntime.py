"""ONNX Runtime: the default engine, on a CPU or through the CUDA provider.

Each layer's cache is one buffer that is bound as input and output, so a step writes it in place. Each
width has a prepared binding: once they exist, a step allocates nothing and passes no Python objects to
ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, BundleError
from .graph_tensors import decoder_outputs, decoder_tensors, difference
from .host_memory import ensure_memory
from .ort_session import (
    OrtOptions,
    choose_pool,
    first_line,
    import_onnxruntime,
    open_session,
    tensors_of,
)
from .protocol import GraphShape, PassInterruptedError, StepOutput
from .sequence import CachedSequence, ShapedEngine, fetched

__all__ = ["OrtDecoder", "OrtEngine", "OrtOptions", "choose_pool", "import_onnxruntime"]

ALWAYS_KEPT, WIDE_KEPT = 16, 4
"""Bindings that are kept: all of narrow passes, and the newest few of wider ones, since the last
chunk of a prompt may have any width."""

LOGITS_TO_KEEP = "logits_to_keep"
"""Input of our graphs: how many of the last rows the head computes. Its default is every row; graphs of
older exports do not have it."""


class OrtEngine(ShapedEngine):
    """An ONNX Runtime session over one decoder graph.

    Args:
        graph: path of `model.onnx`; its external data lies beside it.
        shape: sizes of the graph, from the bundle's manifest.
        options: threads and provider.
        even_passes: add a token, which is forgotten again, to each pass of an odd number of tokens on
            a CPU. Products with quantised weights round otherwise where rows are computed in pairs:
            with this, a token's row does not depend on how many tokens its pass had.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BackendError: ONNX Runtime cannot load the graph.
        BundleError: its inputs and outputs are not those of `shape`.
        UsageError: `provider="cuda"` without a CUDA build or device; or a pool of threads that does
            not go with what this process has already.
    """

    def __init__(
        self,
        graph: Path,
        shape: GraphShape,
        options: OrtOptions | None = None,
        *,
        even_passes: bool = False,
    ) -> None:
        self.graph = graph
        self.shape = shape
        self.session, self.device = open_session(graph, options or OrtOptions())
        self.even_passes = even_passes and self.device == "cpu"
        problem = difference(decoder_tensors(shape), tensors_of(self.session))
        if problem is not None:
            raise BundleError(
                f"the graph {graph} is not what its bundle's manifest says: {problem}",
                hint="export the bundle again with cospec-export",
            )

    def decoder(self, outputs: tuple[str, ...] = ("token",)) -> OrtDecoder:
        """Open a decoder with an empty cache that returns `outputs` from each step."""
        return OrtDecoder(self, outputs)


class OrtDecoder(CachedSequence):
    """One sequence on an `OrtEngine`; see `engines.protocol.Decoder`."""

    def __init__(self, engine: OrtEngine, outputs: tuple[str, ...]) -> None:
        super().__init__(engine.shape)
        ort = import_onnxruntime()
        self._session = engine.session
        self._device = engine.device
        self._graph = engine.graph
        self._run_options = ort.RunOptions()
        # The default. Where it is missing, ONNX Runtime's Python raises and catches in each pass.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        self._cache_length = np.zeros(1, dtype=np.int64)
        optional = {each.name for each in engine.session.get_overridable_initializers()}
        self._cuts_head = LOGITS_TO_KEEP in optional
        self._even_passes = engine.even_passes
        self._by_outputs: dict[tuple[str, ...], dict[tuple[int, int, int], _Binding]] = {}
        self.select(outputs)
        shape, dtype = engine.shape, np.dtype(engine.shape.cache_dtype)
        ensure_memory(shape.cache_bytes, "the cache of a decoder")
        # Zeroed, because a masked position is multiplied by zero: stray NaN bytes would survive that.
        self._cache = {
            f"{i}.{kind}": ort.OrtValue.ortvalue_from_numpy(
                np.zeros((1, heads, shape.capacity, dim), dtype=dtype), self._device, 0
            )
            for i, (heads, dim) in enumerate(shape.kv_shapes)
            for kind in ("key", "value")
        }

    def step(
        self, tokens: Sequence[int] | NDArray[np.int64], rows: int | None = None
    ) -> StepOutput:
        """Feed `tokens` [S] in one pass; see `engines.protocol.Decoder.step`."""
        width = len(tokens)
        self._ensure_room(width)
        kept = width if rows is None or not self._cuts_head else min(rows, width)
        extra = int(self._even_passes and width % 2 and self._length + width < self.capacity)
        try:
            binding = self._bindings.get((width, kept, extra)) or self._bind(width, kept, extra)
            binding.tokens[:width] = tokens
            binding.tokens[width:] = tokens[-1]
            self._cache_length[0] = self._length
            self._session.run_with_iobinding(binding.io, self._run_options)
        except Exception as error:
            if self._run_options.terminate:
                raise PassInterruptedError from error
            raise BackendError(f"ONNX Runtime failed in a step: {first_line(error)}") from error
        if self._device != "cpu":
            binding.fetch()
        if not binding.is_finite():
            self._clear_rest()
            raise BackendError(
                f"the graph {self._graph} produced numbers that are not finite",
                hint="if it is fp16, a value overflowed: export with --precision fp32",
            )
        self._length += width
        return binding.output

    def interrupt(self) -> None:
        """End the pass that runs, and all until `resume`; from any thread."""
        self._run_options.terminate = True

    def resume(self) -> None:
        """Allow passes again."""
        self._run_options.terminate = False

    def select(self, outputs: tuple[str, ...]) -> None:
        """Choose what the next steps return; see `engines.protocol.Decoder.select`."""
        self._outputs = fetched(outputs)
        self._bindings = self._by_outputs.setdefault(self._outputs, {})

    def _clear_rest(self) -> None:
        """Zero the cache after its length: NaN there would reach later steps."""
        for value in self._cache.values():
            whole = value.numpy().copy()
            whole[:, :, self._length :] = 0
            value.update_inplace(whole)

    def read_cache(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return copies of (key, value) [1, Hkv, length, D] of each layer."""
        kept = {name: value.numpy()[:, :, : self._length] for name, value in self._cache.items()}
        layers = range(len(self._shape.kv_shapes))
        return [(kept[f"{i}.key"].copy(), kept[f"{i}.value"].copy()) for i in layers]

    def write_cache(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]], length: int) -> None:
        """Replace the cache by `layers`: (key, value) [1, Hkv, length, D] of each layer."""
        for i, pair in enumerate(layers):
            for kind, array in zip(("key", "value"), pair, strict=True):
                whole = self._cache[f"{i}.{kind}"].numpy().copy()
                whole[:, :, :length] = array
                self._cache[f"{i}.{kind}"].update_inplace(whole)
        self._length = length

    def _bind(self, width: int, kept: int, extra: int) -> _Binding:
        """Prepare and keep the binding of passes of one width that return `kept` rows.

        `extra` tokens more are fed, whose rows are not returned.
        """
        wide = [key for key in self._bindings if key[0] > ALWAYS_KEPT]
        if width > ALWAYS_KEPT and len(wide) >= WIDE_KEPT:
            del self._bindings[wide[0]]
        self._bindings[width, kept, extra] = binding = _Binding(
            self._session, self._shape, width, kept, extra, self._outputs, self._device
        )
        io = binding.io
        fed = {"input_ids": binding.input_ids, "cache_length": self._cache_length}
        if self._cuts_head:
            fed[LOGITS_TO_KEEP] = binding.logits_to_keep
        for name, array in fed.items():
            io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, value in self._cache.items():
            io.bind_ortvalue_input(f"past.{name}", value)
            io.bind_ortvalue_output(f"present.{name}", value)
        return binding


class _Binding:
    """The buffers of a pass that returns the last `kept` of `width` rows, and feeds `extra` more."""

    def __init__(
        self,
        session: Any,
        shape: GraphShape,
        width: int,
        kept: int,
        extra: int,
        outputs: tuple[str, ...],
        device: str,
    ) -> None:
        tensors = decoder_outputs(shape)
        width, rows = width + extra, kept + extra
        self.io = session.io_binding()
        self.logits_to_keep = np.array([rows], dtype=np.int64)
        self.input_ids = np.zeros((1, width), dtype=np.int64)
        self.tokens = self.input_ids[0]
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.zeros((1, rows, *tensors[name].shape[2:]), dtype=tensors[name].dtype)
            for name in outputs
        }
        self._logsumexp = self._arrays["logsumexp"][0]
        self._zeros = np.zeros(rows, dtype=np.float32)
        self._device = device
        self._on_device: dict[str, Any] = {}
        for name, array in self._arrays.items():
            if device == "cpu":
                self.io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                value = import_onnxruntime().OrtValue.ortvalue_from_numpy(array, device, 0)
                self._on_device[name] = value
                self.io.bind_ortvalue_output(name, value)
        self.output = StepOutput(**{name: array[0, :kept] for name, array in self._arrays.items()})

    def is_finite(self) -> bool:
        """Say whether the rows' logits are usable, which is when their logsumexp is finite."""
        # Zero times what is not finite is NaN; several times faster than asking isfinite of each row.
        return bool(self._zeros.dot(self._logsumexp) == 0)

    def fetch(self) -> None:
        """Copy the outputs from the device into the host buffers."""
        for name, value in self._on_device.items():
            self._arrays[name][...] = value.numpy()
