"""A *simulated* TensorRT and CUDA, backed by ONNX Runtime on the CPU: no GPU, and nothing of NVIDIA's.

It shows that our code drives the two APIs by their rules; it shows nothing about a GPU or its speed.

The rules that it holds the caller to:
- device memory has an address space of its own, aligned to 256 bytes; touching what was not allocated
  fails as the real one does: late, at the next wait, and for good;
- work on a stream runs when somebody waits, not before: a host that reads a result or reuses an input
  too early gets it wrong;
- a captured graph repeats addresses, not contents; the default stream captures nothing, and waiting or
  allocating while capturing spoils the capture;
- a pass is refused without addresses, shapes, scratch memory, or with a shape outside the profile, or
  when an aliased output has another address than its input.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from simulated_cuda import ALIGNMENT, SimulatedCuda
from simulated_tensorrt_enums import (
    AllocationStrategy,
    DataType,
    Severity,
    SimulatedLogger,
    TensorIOMode,
    TensorLocation,
)

_ONNX_TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
}

SM = 87
"""Of the simulated GPU, a Jetson Orin."""

VERSIONS = {"scatter": "10.16.1.11", "portable": "10.3.0"}
"""The TensorRT that each form is tried with: those of JetPack 7.2 and 6. Before 10.15 an engine cannot
tell what is an alias."""


def simulated_plan(
    graph: Path, *, widths: list[tuple[int, int, int]], in_place: bool, version: str = "11.4.0.106"
) -> bytes:
    """Return the bytes of a simulated plan, which say where its ONNX graph lies.

    Args:
        graph: the ONNX graph.
        widths: (min, opt, max) of the dynamic axis, for each optimisation profile.
        in_place: every `present.x` is an alias of `past.x`.
        version: of the simulated TensorRT that can load it.
    """
    facts = {"graph": str(graph), "widths": widths, "in_place": in_place, "version": version}
    facts["sm"] = None
    return b"simulated plan " + json.dumps(facts).encode()


class SimulatedTensorRt:
    """Stands for the module `tensorrt`.

    Args:
        cuda: the device of its engines.
        version: the simulated version. Before 10.15 an engine cannot tell what is an alias.
        scratch: bytes that a context needs.

    Attributes:
        knows_aliases: engines have `get_aliased_input_tensor`.
        poison: passes yield NaN, in caches too.
        refuse_captures: RTX's `is_stream_capturable` says no.
        broken: names of methods that report failure, as the real ones do.
        passes: width of every pass that ran; 0 for the arbiter.
    """

    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = AllocationStrategy
    ILogger = SimulatedLogger

    def __init__(
        self, cuda: SimulatedCuda, version: str = "11.4.0.106", scratch: int = 4096
    ) -> None:
        self.cuda = cuda
        self.__name__ = "tensorrt"
        self.__version__ = version
        self.scratch = scratch
        self.refuse_captures = False
        self.poison = False
        self.knows_aliases = tuple(map(int, version.split(".")[:2])) >= (10, 15)
        self.broken: set[str] = set()
        self.passes: list[int] = []

    def Runtime(self, logger: SimulatedLogger) -> SimulatedRuntime:
        if not self.cuda.calls["cudaGetDeviceCount"] or not self.cuda.devices:
            raise SystemError("the real runtime takes the process down here: no driver was found")
        return SimulatedRuntime(self, logger)


class SimulatedRuntime:
    """Stands for `Runtime`."""

    def __init__(self, trt: SimulatedTensorRt, logger: SimulatedLogger) -> None:
        self._trt = trt
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> SimulatedEngine | None:
        prefix = b"simulated plan "
        if not data.startswith(prefix):
            self._logger.log(Severity.ERROR, "simulated: magicTag does not match")
            return None
        facts = json.loads(data.removeprefix(prefix))
        if facts["version"] != self._trt.__version__:
            self._logger.log(Severity.ERROR, f"simulated: built by {facts['version']}")
            return None
        if facts["sm"] not in (None, SM):
            self._logger.log(Severity.ERROR, f"simulated: built for SM {facts['sm']}, not {SM}")
            return None
        engine = SimulatedEngine(self._trt, self._logger, facts)
        if self._trt.knows_aliases:
            engine.get_aliased_input_tensor = engine.alias_of  # type: ignore[attr-defined]
        return engine


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    item: int
    shape: tuple[int, ...]
    mode: TensorIOMode


class SimulatedEngine:
    """Stands for `ICudaEngine`."""

    def __init__(
        self, trt: SimulatedTensorRt, logger: SimulatedLogger, facts: dict[str, Any]
    ) -> None:
        import onnxruntime as ort

        self.trt = trt
        self.logger = logger
        self.widths = [tuple(profile) for profile in facts["widths"]]
        self.in_place = facts["in_place"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            facts["graph"], options, providers=["CPUExecutionProvider"]
        )
        self.tensors: dict[str, _Tensor] = {}
        sides = (
            (TensorIOMode.INPUT, self.session.get_inputs()),
            (TensorIOMode.OUTPUT, self.session.get_outputs()),
        )
        for mode, values in sides:
            for value in values:
                dtype, numpy_type = _ONNX_TYPES[value.type]
                shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
                item = np.dtype(numpy_type).itemsize
                self.tensors[value.name] = _Tensor(dtype, item, shape, mode)
        self.device_memory_size_v2 = trt.scratch
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(self.widths)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.tensors[name].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name].mode

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shape = self.tensors[name].shape
        return [
            tuple(width if size == -1 else size for size in shape) for width in self.widths[profile]
        ]

    def alias_of(self, name: str) -> str | None:
        if self.in_place and name.startswith("present."):
            return name.replace("present.", "past.", 1)
        return None

    def create_execution_context(self, strategy: AllocationStrategy) -> SimulatedContext | None:
        assert strategy == AllocationStrategy.USER_MANAGED
        if "create_execution_context" in self.trt.broken:
            self.logger.log(Severity.ERROR, "simulated: out of memory")
            return None
        return SimulatedContext(self)


class SimulatedContext:
    """Stands for `IExecutionContext`."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._trt = engine.trt
        self._cuda = engine.trt.cuda
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {
            name: tensor.shape
            for name, tensor in engine.tensors.items()
            if tensor.mode == TensorIOMode.INPUT and -1 not in tensor.shape
        }
        self._profile: int | None = None
        self._scratch: tuple[int, int] | None = None
        if "1.7.1" in engine.trt.__version__:
            self.is_stream_capturable = lambda stream: not engine.trt.refuse_captures

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if "set_optimization_profile_async" in self._trt.broken:
            return self._refuse("profile in use")
        self._profile = profile
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine.tensors:
            return self._refuse(f"no tensor {name}")
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            return self._refuse("no profile chosen")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name} {shape} is outside of profile {self._profile}")
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._inputs() if name not in self._shapes]

    def execute_async_v3(self, stream: int) -> bool:
        problem = self._problem(stream)
        if problem is not None:
            return self._refuse(problem)
        # As the real one does at enqueue: later changes of addresses and shapes are for later passes.
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        self._cuda.stream(stream).put(lambda: self._execute(addresses, shapes))
        return True

    def _problem(self, stream: int) -> str | None:
        if "execute_async_v3" in self._trt.broken:
            return "enqueue failed"
        if stream == 0:
            return "the default stream is not for the simulation"
        if self.infer_shapes():
            return f"no shape for {self.infer_shapes()}"
        if self._scratch is None or self._scratch[1] < self._engine.device_memory_size_v2:
            return "no device memory for activations"
        for name in self._engine.tensors:
            address = self._addresses.get(name)
            if not address:
                return f"no address for {name}"
            if address % ALIGNMENT:
                return f"the address of {name} is not aligned to {ALIGNMENT} bytes"
            source = self._engine.alias_of(name)
            if source is not None and self._addresses.get(source) != address:
                return f"{name} is an alias of {source} but has another address"
        return None

    def _execute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        """Run the graph on the contents of device memory at this moment."""
        assert self._scratch is not None
        self._cuda.device(*self._scratch)[:] = 0xAB  # activations of this pass: nobody's memory
        feeds = {}
        for name in self._inputs():
            tensor, shape = self._engine.tensors[name], shapes[name]
            size = int(np.prod(shape)) * tensor.item
            kind = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}[tensor.dtype]
            data = self._cuda.device(addresses[name], size).copy().view(kind).reshape(shape)
            feeds[name] = data
        names = [value.name for value in self._engine.session.get_outputs()]
        results = self._engine.session.run(names, feeds)
        for name, result in zip(names, results, strict=True):
            if self._trt.poison:
                result = self._poisoned(name, result, feeds)
            data = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
            self._cuda.device(addresses[name], data.size)[:] = data
        self._trt.passes.append(shapes["input_ids"][1] if "input_ids" in shapes else 0)

    def _poisoned(self, name: str, result: np.ndarray, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """NaN in every float, and in the rows of the cache that this pass wrote."""
        if result.dtype == np.int64:
            return result
        if not name.startswith("present."):
            return np.full_like(result, np.nan)
        start, width = int(feeds["cache_length"][0]), feeds["input_ids"].shape[1]
        result[:, :, start : start + width] = np.nan
        return result

    def _inputs(self) -> list[str]:
        tensors = self._engine.tensors.items()
        return [name for name, tensor in tensors if tensor.mode == TensorIOMode.INPUT]

    def _refuse(self, reason: str) -> bool:
        self._engine.logger.log(Severity.ERROR, f"simulated: {reason}")
        return False


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    version: str = "10.16.1.11",
    devices: int = 1,
    build_errors: tuple[str, ...] = (),
) -> SimulatedTensorRt:
    """Install the pair where our code imports the real one, with builds that only note the graph.

    With `build_errors`, builds fail, and the builder logs these.
    """
    from cospec.runtime.tensorrt.builder import BuildLog, BuiltPlan, build_error

    cuda = SimulatedCuda(devices)
    trt = SimulatedTensorRt(cuda, version)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)

    def build(_: object, graph: Path, spec: Any, *__: object) -> BuiltPlan:
        if build_errors:
            raise build_error(trt, graph, list(build_errors))
        widths = [(profile.low, profile.best, profile.high) for profile in spec.profiles]
        in_place = spec.form is not None and spec.form.lowering == "scatter"
        plan = simulated_plan(graph, widths=widths, in_place=in_place, version=version)
        return BuiltPlan(plan, BuildLog(), b"")

    monkeypatch.setattr("cospec.runtime.tensorrt.bundle_engines.build_engine", build)
    return trt
