"""From ONNX to TensorRT: parse a graph into a network, and build the network into a plan.

It uses the Python API that TensorRT 10.3 to 11.4 and TensorRT-RTX share. Networks are strongly typed:
the engine has the graph's types.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BackendError, CospecError, GateError, ResourceError
from .api import flavour_of, make_logger, version_of
from .profiles import Profile

Progress = Callable[[float], None]
"""Called with the share of a build that is done, from 0 to 1."""

WORKSPACE_BYTES = 1 << 30
"""Limit of a kernel's scratch memory; by default TensorRT uses all free memory of the GPU."""

_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|MemoryAllocation|bad_alloc", re.I)
# A host without a driver logs that with every real error.
_NO_DRIVER_NOISE = re.compile(r"cudaError\D{0,12}35\b|initialization failure with error: 35")


@dataclass
class BuildLog:
    """The log of TensorRT: (severity, text) in order.

    The severities are TensorRT's names: VERBOSE, INFO, WARNING, ERROR, INTERNAL_ERROR.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        """Append a line, unless it only reports that this machine has no driver."""
        if not _NO_DRIVER_NOISE.search(text):
            self.lines.append((severity, text))

    def errors(self) -> list[str]:
        """Return the texts of all errors."""
        return [text for severity, text in self.lines if severity.endswith("ERROR")]

    def warnings(self) -> list[str]:
        """Return the texts of all warnings."""
        return [text for severity, text in self.lines if severity == "WARNING"]

    def text(self) -> str:
        """Return the whole log."""
        return "".join(f"[{severity}] {text}\n" for severity, text in self.lines)


@dataclass(frozen=True)
class BuildRequest:
    """How to build one engine.

    Attributes:
        profiles: in the order in which the engine numbers them.
        sm: compute capability to build for; None for the GPU of this machine. Only TensorRT-RTX can
            build for another one.
        timing_cache: measurements of an earlier build of this TensorRT on this GPU.
    """

    profiles: tuple[Profile, ...]
    sm: int | None = None
    timing_cache: bytes = b""


@dataclass(frozen=True)
class ParsedGraph:
    """A network as TensorRT's parser read it.

    Attributes:
        graph: the ONNX file.
        network: an INetworkDefinition.
        builder: made the network, and must outlive it.
        parser: owns the weights of the network.
        log: of parser and builder.
    """

    graph: Path
    network: Any
    builder: Any
    parser: Any
    log: BuildLog


@dataclass(frozen=True)
class BuiltPlan:
    """The result of a build.

    Attributes:
        plan: the serialized engine.
        log: of parser and builder.
        timing_cache: for the next build; empty for TensorRT-RTX, which has none.
    """

    plan: bytes
    log: BuildLog
    timing_cache: bytes


def parse_graph(trt: Any, graph: Path) -> ParsedGraph:
    """Parse an ONNX file, and its external data, into a strongly typed network.

    Raises:
        GateError: the parser rejects the graph; the message has its errors.
        BackendError: TensorRT cannot start on this machine.
    """
    log = BuildLog()
    logger = make_logger(trt, log.add)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # raised by the bindings without a driver
        raise BackendError(
            f"{trt.__name__} {version_of(trt)} cannot start its builder: "
            f"{_last(log.errors()) or error}",
            hint="TensorRT builds on the GPU it builds for; only TensorRT-RTX builds without one",
        ) from error
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        problems = [parser.get_error(i) for i in range(parser.num_errors)]
        # The same error is reported for every layer.
        reported = dict.fromkeys(f"{p.node_operator()}: {p.desc()}".strip() for p in problems)
        raise GateError(
            f"the parser of {trt.__name__} {version_of(trt)} rejects {graph.name}: "
            f"{'; '.join(reported) or _last(log.errors())}",
            hint="export with the other form: --lowering portable or --lowering scatter",
        )
    return ParsedGraph(graph, network, builder, parser, log)


def build_plan(
    trt: Any, parsed: ParsedGraph, request: BuildRequest, progress: Progress | None = None
) -> BuiltPlan:
    """Build a parsed (and linted) network into a plan.

    Ctrl-C and SIGTERM are held back until the builder can stop, and then take effect.

    Raises:
        GateError: TensorRT rejects the network; the message has its errors.
        ResourceError: the build ran out of memory.
        BackendError: this flavour cannot build for that SM.
    """
    builder, network = parsed.builder, parsed.network
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if flavour_of(trt) == "rtx":
        _aim_at(trt, config, request.sm)
        cache = None  # RTX measures nothing ahead of time
    else:
        cache = config.create_timing_cache(request.timing_cache)
        if cache is None:  # damaged, or of another version
            cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    for profile in request.profiles:
        config.add_optimization_profile(_make_profile(builder, network, profile))
    with _interruptible() as interrupted:
        report = progress or (lambda share: None)
        config.progress_monitor = _make_monitor(trt, report, interrupted)
        serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise build_error(trt, parsed.graph, parsed.log.errors())
    kept = b"" if cache is None else bytes(memoryview(cache.serialize()))
    return BuiltPlan(bytes(memoryview(serialized)), parsed.log, kept)


def build_error(trt: Any, graph: Path, errors: list[str]) -> CospecError:
    """Return the error of a build that TensorRT ended with these errors in its log."""
    for text in errors:
        found = re.search(r"target\(s\) (sm\d+), because .* datatypes: ([^.\s]+)", text)
        if found:
            return GateError(
                f"{graph.name} holds weights in {found[2]}, which {found[1].upper()} does not "
                f"compute in; TensorRT says: {text}",
                hint="choose other --weights or another --precision, or a --device that has it",
            )
    reported = "; ".join(dict.fromkeys(errors)) or "it reported no reason"
    who = f"{trt.__name__} {version_of(trt)}"
    if _OUT_OF_MEMORY.search(reported):
        return ResourceError(
            f"the build of {graph.name} ran out of memory; {who} says: {reported}",
            hint="close other programs or add swap; or export with --weights int4 or a smaller "
            "--capacity",
        )
    return GateError(
        f"{who} cannot build {graph.name}: {reported}",
        hint="export with the other form (--lowering portable), another --precision, or another "
        "--device",
    )


def _aim_at(trt: Any, config: Any, sm: int | None) -> None:
    name = "CURRENT" if sm is None else f"SM{sm}"
    capability = getattr(trt.ComputeCapability, name, None)
    if capability is None:
        raise BackendError(
            f"{trt.__name__} {version_of(trt)} builds no engines for SM {sm}",
            hint="build on the device itself, with the TensorRT that it runs",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


def _make_profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape:
            made.set_shape(tensor.name, *profile.shapes(shape))
    return made


def _make_monitor(trt: Any, progress: Progress, interrupted: threading.Event) -> Any:
    """Return an IProgressMonitor that turns TensorRT's nested phases into one share."""
    steps: dict[str, int] = {}
    done: dict[str, int] = {}
    parents: dict[str, str | None] = {}
    furthest = 0.0
    lock = threading.Lock()  # TensorRT reports from several threads

    def share(phase: str) -> float:
        inner = max((share(name) for name, parent in parents.items() if parent == phase), default=0)
        return min(1.0, (done[phase] + inner) / max(steps[phase], 1))

    def report(whole: float) -> None:
        nonlocal furthest
        if whole > furthest:  # phases overlap, and a bar should not go back
            furthest = whole
            progress(whole)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            with lock:
                steps[phase], done[phase], parents[phase] = num_steps, 0, parent

        def phase_finish(self, phase: str) -> None:
            with lock:
                if phase in parents and parents.pop(phase) is None:
                    report(1.0)

        def step_complete(self, phase: str, step: int) -> bool:
            with lock:
                if phase in parents:
                    done[phase] = step + 1
                    roots = (name for name, parent in parents.items() if parent is None)
                    report(max(map(share, roots), default=0.0))
            return not interrupted.is_set()

    return Monitor()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Hold back Ctrl-C and SIGTERM until the end: exceptions cannot pass through a build's C++.

    Yields an event that is set when a signal came, so that the build can stop.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    received: list[int] = []

    def hold_back(number: int, _: object) -> None:
        received.append(number)
        interrupted.set()

    before = {
        number: signal.signal(number, hold_back) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _last(lines: list[str]) -> str:
    return lines[-1] if lines else ""
