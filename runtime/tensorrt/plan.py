"""A TensorRT plan in memory: deserialised, compared with its bundle, and its execution contexts.

`trt` is the module `tensorrt` or `tensorrt_rtx`, always as a parameter. Only names that exist from
TensorRT 10.3 to 11.4 are used; those that some versions lack are looked up first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from ...errors import BackendError
from ..engines.graph_tensors import Tensor, difference
from .api import make_logger
from .cuda import Cuda, DeviceMemory, Stream

# Not trt.nptype, which raises for bfloat16: numpy does not have it.
_DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_REBUILD = "build it again: cospec-export --build-only DIR"


class Plan:
    """A deserialised engine.

    A plan is executable code: the caller has compared its hash with that of the build.

    Args:
        data: the serialised engine.
        trt: the module `tensorrt` or `tensorrt_rtx`.
        cuda: the device, made before TensorRT is called.
        what: names the plan in errors, such as "the target's plan".

    Raises:
        BackendError: TensorRT cannot load it here.
    """

    def __init__(self, data: bytes, *, trt: Any, cuda: Cuda, what: str) -> None:
        self.trt = trt
        self.cuda = cuda
        self.what = what
        self._messages: deque[str] = deque(maxlen=3)
        self._logger = make_logger(trt, self._log)
        # The engine refers to the runtime and to the logger, so this object keeps all three.
        self._runtime = trt.Runtime(self._logger)
        self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise self.error(
                f"TensorRT {trt.__version__} cannot load {what}",
                hint=f"it was built for another version or GPU, or is damaged; {_REBUILD}",
            )
        self.tensors = self._read_tensors()

    def _log(self, severity: str, text: str) -> None:
        if severity.endswith("ERROR"):
            self._messages.append(text.strip())

    def error(self, message: str, *, hint: str | None = None) -> BackendError:
        """Return an error with the last errors of TensorRT, if it logged any."""
        logged = "; ".join(self._messages)
        self._messages.clear()
        return BackendError(f"{message}: {logged}" if logged else message, hint=hint)

    def expect(self, expected: Mapping[str, Tensor]) -> None:
        """Compare names, types and sizes of all tensors with those of the bundle.

        Raises:
            BackendError: names the first that differs.
        """
        problem = difference(expected, self.tensors)
        if problem is not None:
            raise self.error(f"{self.what} is not that of this bundle: {problem}", hint=_REBUILD)
        for name in expected:
            if self.engine.get_tensor_location(name) != self.trt.TensorLocation.DEVICE:
                raise self.error(
                    f"{self.what} wants '{name}' in host memory, where the device cannot feed it",
                    hint=_REBUILD,
                )

    def is_in_place(self, pairs: Mapping[str, str], *, expected: bool) -> bool:
        """Return whether the plan writes the cache in place, and refuse one that is not as expected.

        Args:
            pairs: output -> input of the cache.
            expected: whether the graph was lowered to write in place.

        Raises:
            BackendError: an output shares its input's memory and should not, or the other way round.
        """
        # Before 10.15 there is neither the operator that writes in place nor this function.
        ask = getattr(self.engine, "get_aliased_input_tensor", None)
        for output, source in pairs.items():
            alias = ask(output) if ask is not None else None
            if (alias or None) != (source if expected else None):
                raise self.error(
                    f"{self.what}: '{output}' is {'an alias of ' + alias if alias else 'a copy'}, "
                    f"expected {'an alias of ' + source if expected else 'a copy'}",
                    hint=_REBUILD,
                )
        return expected

    def widths(self, name: str, axis: int) -> list[tuple[int, int]]:
        """Return the (smallest, largest) size of an input's axis in each optimisation profile."""
        found = []
        for profile in range(self.engine.num_optimization_profiles):
            low, _, high = self.engine.get_tensor_profile_shape(name, profile)
            found.append((int(low[axis]), int(high[axis])))
        return found

    def _read_tensors(self) -> dict[str, Tensor]:
        engine, trt = self.engine, self.trt
        names = {getattr(trt.DataType, key): name for key, name in _DTYPE_NAMES.items()}
        found = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = engine.get_tensor_dtype(name)
            found[name] = Tensor(
                dtype=names.get(dtype, str(dtype)),
                shape=tuple(engine.get_tensor_shape(name)),
                is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
        return found


class Context:
    """An execution context of a plan, with a profile, shapes and addresses.

    Contexts that run one after the other on a stream share their scratch memory.

    Args:
        plan: the plan to execute.
        profile: index of the optimisation profile, which cannot change.
        scratch: memory for activations, `scratch_bytes(plan)` bytes.
        stream: on which it runs.

    Raises:
        BackendError: TensorRT cannot make it.
    """

    def __init__(self, plan: Plan, profile: int, scratch: DeviceMemory, stream: Stream) -> None:
        self._plan = plan
        self._stream = stream
        self._scratch = scratch
        self._shapes: dict[str, tuple[int, ...]] = {}
        strategy = plan.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.native = plan.engine.create_execution_context(strategy)
        if self.native is None:
            raise plan.error(
                f"TensorRT could not make an execution context of {plan.what}",
                hint="close other programs on the GPU, or export again with a smaller --capacity",
            )
        self.native.set_device_memory(scratch.address, scratch.size)
        if not self.native.set_optimization_profile_async(profile, stream.handle):
            raise plan.error(f"{plan.what}: profile {profile} could not be chosen", hint=_REBUILD)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the addresses of tensors, each once, before the first pass."""
        for name, address in addresses.items():
            if not self.native.set_tensor_address(name, address):
                raise self._plan.error(
                    f"{self._plan.what}: '{name}' takes no address", hint=_REBUILD
                )

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the shapes of inputs that differ from the current ones."""
        changed = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        if not changed:
            return
        for name, shape in changed.items():
            if not self.native.set_input_shape(name, shape):
                raise self._plan.error(
                    f"{self._plan.what}: '{name}' cannot have the shape {shape}", hint=_REBUILD
                )
            self._shapes[name] = shape
        missing = self.native.infer_shapes()
        if missing:
            raise self._plan.error(
                f"{self._plan.what}: no shape for {', '.join(missing)}", hint=_REBUILD
            )

    def enqueue(self) -> None:
        """Put one pass on the stream.

        Raises:
            BackendError: TensorRT refused; nothing runs.
        """
        if not self.native.execute_async_v3(self._stream.handle):
            raise self._plan.error(f"TensorRT could not start a pass of {self._plan.what}")

    def cannot_be_captured(self) -> str | None:
        """Return why TensorRT says that a pass cannot become a CUDA graph; None if it can."""
        ask = getattr(self.native, "is_stream_capturable", None)
        if ask is None or ask(self._stream.handle):
            return None
        return "TensorRT says that this pass cannot be captured"


def scratch_bytes(plan: Plan) -> int:
    """Return the bytes that a context of `plan` needs for activations, in any profile."""
    return int(plan.engine.device_memory_size_v2)
