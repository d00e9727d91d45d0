"""`cospec-export --build-only`: build the engines of an existing bundle."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BackendError, MissingExtraError
from ..runtime.bundle.manifest import EnginesEntry
from ..runtime.bundle.reader import Bundle
from ..runtime.tensorrt.api import Gpu, find_gpu, flavour_of, import_tensorrt, version_of
from ..runtime.tensorrt.builder import Progress
from ..runtime.tensorrt.bundle_engines import engine_specs, prepare_engines
from ..runtime.tensorrt.devices import DEVICES, Device, device_of


def build_bundle(
    bundle: Bundle, device: Device | None, begin: Callable[[str], Progress]
) -> tuple[list[str], int]:
    """Build the engines whose plans are missing or do not match.

    Args:
        bundle: opened and verified.
        device: the RTX card or this machine. None means this machine, or the RTX card that the bundle
            was exported for if this machine has no GPU.
        begin: called with the role before each build; returns the progress callback of that build.

    Returns:
        The roles that were built, and their SM.

    Raises:
        UsageError: the bundle's graphs are not for TensorRT.
        BackendError: engines for this device cannot be built here.
        GateError: TensorRT rejects a graph, or parses it into another computation.
        ResourceError: the device cannot hold the engines, or a plan cannot be written.
    """
    engine_specs(bundle.manifest)  # refuses graphs for ONNX Runtime before it asks for a GPU
    entry = bundle.manifest.engines
    if device is not None and device.flavour == "rtx":
        trt, sm = import_tensorrt("rtx"), device.sm
    else:
        gpu = _gpu_here(entry)
        if gpu is not None and (device is None or device.sm == gpu.sm):
            # As `cospec-run` chooses, which is to find these plans.
            trt, sm = import_tensorrt(entry.flavour if entry else None), gpu.sm
            device = device_of(gpu, flavour_of(trt), version_of(trt))
        elif device is None and entry is not None and entry.flavour == "rtx":
            trt, sm, device = import_tensorrt("rtx"), entry.sm, DEVICES.get(entry.device)
        else:
            sm = None
    if sm is None:
        where = device.name if device else (entry.device if entry else "a GPU")
        raise BackendError(
            f"engines for {where} cannot be built on this machine: TensorRT builds on the GPU that it "
            "builds for",
            hint=f"copy {bundle.root} there and run cospec-export --build-only on it; only engines of "
            "RTX cards (--device rtx-4090) are built anywhere",
        )
    return prepare_engines(bundle.root, bundle.manifest, trt, sm, begin, device=device), sm


def _gpu_here(entry: EnginesEntry | None) -> Gpu | None:
    """Return this machine's GPU. Engines for an RTX card need none, nor a way to look for one."""
    try:
        return find_gpu()
    except MissingExtraError:
        if entry is None or entry.flavour != "rtx":
            raise
        return None
