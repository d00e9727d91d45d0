"""What works on a machine and what does not: pure functions of its facts, one for each topic.

TensorRT is in `tensorrt_check.py`, bundles are in `bundle_check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..bundle.files import format_bytes
from ..tensorrt.api import MODULES, release
from .findings import Finding, install, listed, ok, problem, warning
from .machine import ORT_PACKAGES, Machine
from .tensorrt_check import JETPACK_FIX, bindings_for, check_jetpack, check_tensorrt

TESTED_PYTHONS = ((3, 10), (3, 13))
OLDEST_SM = 75
"""The first compute capability that TensorRT 10 and newer build for."""
ARM_WHEEL_SMS = (89, 90, 120, 121)
"""Compute capabilities that PyPI's onnxruntime-gpu 1.31.1 has code for on aarch64. It holds no PTX: on
any other its CUDA provider is listed, and fails at the first pass."""
LITTLE_MEMORY = 2 << 30
LITTLE_DISK = 5 << 30
"""Below these, a model of a billion parameters in fp16 does not fit."""

_CPU_INSTEAD = "pip uninstall -y onnxruntime-gpu && pip install onnxruntime"
_DRIVER_FIX = "install NVIDIA's driver: https://www.nvidia.com/drivers"


def check_python(machine: Machine) -> Iterator[Finding]:
    """Whether cospec and its base work with this Python."""
    oldest, newest = TESTED_PYTHONS
    shown = ".".join(map(str, machine.python))
    if machine.python < oldest:
        yield problem(
            "python",
            f"{shown} is older than {oldest[0]}.{oldest[1]}",
            f"python{newest[0]}.{newest[1]} -m venv .venv",
        )
    elif machine.python[:2] > newest:
        yield warning("python", f"{shown} is newer than any that cospec was tested with")
    else:
        yield ok("python", f"{shown}, {machine.system} on {machine.arch}")
    version = machine.packages.get("cospec")
    missing, old = machine.lacking("")
    if version is None:
        yield problem("cospec", "cospec is not installed", "pip install cospec")
    elif missing or old:
        yield problem("cospec", f"{version}, without {listed(missing + old)}", "pip install cospec")
    else:
        yield ok("cospec", version)


def check_onnxruntime(machine: Machine) -> Iterator[Finding]:
    """Whether one ONNX Runtime is installed, loads and is new enough, and what it computes on."""
    topic = "onnxruntime"
    installed = [name for name in ORT_PACKAGES if machine.has(name)]
    wanted = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else "onnxruntime"
    again = f"pip uninstall -y {' '.join(installed)} && pip install {wanted}"
    if len(installed) > 1:
        yield problem(
            topic,
            f"{listed(installed)} are installed together: each overwrites files of the other",
            again,
        )
        return
    if not installed:
        if _can_tensorrt(machine):
            yield ok(topic, "not installed; TensorRT runs bundles here", install("cpu"))
        else:
            yield problem(topic, "not installed, and nothing else runs bundles", install("cpu"))
        return
    version = machine.packages[installed[0]]
    if topic in machine.broken:
        yield problem(topic, f"{version} cannot be loaded: {machine.broken[topic]}", again)
        return
    extra = "gpu" if installed[0] == "onnxruntime-gpu" else "cpu"
    if any(name in (topic, "onnxruntime-gpu") for name in machine.lacking(extra)[1]):
        yield problem(
            topic, f"{version} is older than cospec needs", f"pip install -U {installed[0]}"
        )
        return
    shown = ", ".join(each.removesuffix("ExecutionProvider") for each in machine.providers)
    has_cuda = "CUDAExecutionProvider" in machine.providers
    if installed[0] == "onnxruntime-gpu" and not has_cuda:
        yield warning(
            topic,
            f"{version} is the GPU's package and has no CUDA provider ({shown})",
            "pip install --force-reinstall onnxruntime-gpu",
        )
    elif installed[0] == "onnxruntime-gpu" and machine.gpu is None and not machine.has_driver:
        yield warning(
            topic, f"{version} is the GPU's package, on a machine without one", _CPU_INSTEAD
        )
    elif installed[0] == "onnxruntime-gpu" and (lack := _lacks_code(machine)) is not None:
        yield warning(
            topic,
            f"{version}: {lack}, and fails at the first pass unless it is from elsewhere; run "
            "bundles on TensorRT, and keep ONNX Runtime for the CPU",
            _CPU_INSTEAD,
        )
    else:
        yield ok(topic, f"{version} ({shown})")


def check_gpu(machine: Machine) -> Iterator[Finding]:
    """Whether there is a GPU, and Python sees it."""
    bindings = machine.packages.get("cuda-bindings")
    if machine.gpu is not None:
        gpu, driver = machine.gpu, machine.cuda_driver
        shown = "" if driver is None else f", driver for CUDA {driver[0]}.{driver[1]}"
        memory = format_bytes(gpu.memory_bytes)
        if gpu.sm < OLDEST_SM:
            yield warning("gpu", f"{gpu.name} is SM {gpu.sm}; TensorRT needs {OLDEST_SM} or newer")
        else:
            yield ok("gpu", f"{gpu.name}, SM {gpu.sm}, {memory}{shown}")
    elif not machine.has_driver and not machine.is_jetson:
        yield ok("gpu", "no NVIDIA GPU or no driver for it: bundles run on the CPU")
    elif bindings is None:
        yield warning(
            "gpu",
            "NVIDIA's driver is there; cuda-bindings, which asks it, is not",
            bindings_for(machine),
        )
    elif "cuda.bindings.runtime" in machine.broken:
        reason = machine.broken["cuda.bindings.runtime"]
        yield problem(
            "gpu", f"cuda-bindings {bindings} cannot be loaded: {reason}", bindings_for(machine)
        )
    else:
        fix = JETPACK_FIX if machine.is_jetson else _DRIVER_FIX
        yield problem("gpu", "NVIDIA's driver is there, and CUDA finds no GPU", fix)
    if bindings is not None and machine.cuda_driver is not None:
        major = release(f"{bindings}.0")[0]
        if major > machine.cuda_driver[0]:
            yield problem(
                "gpu",
                f"cuda-bindings {bindings} needs a driver for CUDA {major}, and this one is for "
                f"{machine.cuda_driver[0]}.{machine.cuda_driver[1]}",
                bindings_for(machine),
            )


def check_resources(machine: Machine) -> Iterator[Finding]:
    """Memory and disk."""
    if machine.memory is not None:
        free = machine.memory if machine.memory_free is None else machine.memory_free
        shown = f"{format_bytes(free)} free of {format_bytes(machine.memory)}"
        if free < LITTLE_MEMORY:
            yield warning("memory", f"{shown}: small bundles only; close other programs")
        else:
            yield ok("memory", shown)
    if machine.disk_free is not None:
        shown = f"{format_bytes(machine.disk_free)} free"
        if machine.disk_free < LITTLE_DISK:
            yield warning(
                "disk", f"{shown}: an export needs room for the weights and as much again"
            )
        else:
            yield ok("disk", shown)


def check_extras(machine: Machine) -> Iterator[Finding]:
    """Which parts of cospec are installed, and which fit."""
    for extra in machine.extras:
        if extra in ("", "dev"):
            continue
        topic = f"[{extra}]"
        misfit = _misfit(machine, extra)
        missing, old = machine.lacking(extra)
        if misfit is not None:
            yield ok(topic, misfit)
        elif old:
            yield warning(topic, f"older than cospec needs: {listed(old)}", f"{install(extra)} -U")
        elif missing:
            yield ok(topic, f"not installed: {listed(missing)}", _install_extra(machine, extra))
        else:
            yield ok(topic, "installed")


_NEEDS_BACKEND = ("export", "calibrate", "serve", "bench")
"""Extras that run bundles, and leave it to the user on which backend."""

CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    check_python,
    check_onnxruntime,
    check_gpu,
    check_tensorrt,
    check_jetpack,
    check_resources,
    check_extras,
)


def check_machine(machine: Machine) -> list[Finding]:
    """Return the findings of all checks."""
    return [finding for check in CHECKS for finding in check(machine)]


def _misfit(machine: Machine, extra: str) -> str | None:
    """Return why an extra is not for this machine, None if it is."""
    if extra in ("gpu", "trt") and machine.gpu is None and not machine.has_driver:
        return "for machines with an NVIDIA GPU"
    if extra == "gpu" and (lack := _lacks_code(machine)) is not None:
        return f"{lack}; use TensorRT (the extra trt), and ONNX Runtime on the CPU"
    if extra == "rtx" and (machine.arch not in ("x86_64", "AMD64") or machine.system == "Darwin"):
        return "for PCs"
    return None


def _lacks_code(machine: Machine) -> str | None:
    """Return why PyPI's onnxruntime-gpu computes nothing on this machine's GPU, None if it does."""
    if machine.arch != "aarch64" or (machine.gpu is not None and machine.gpu.sm in ARM_WHEEL_SMS):
        return None
    name = "this Jetson's GPU" if machine.gpu is None else f"SM {machine.gpu.sm}"
    if machine.gpu is None and not machine.is_jetson:
        return None
    return f"PyPI's onnxruntime-gpu for aarch64 has no code for {name}"


def _install_extra(machine: Machine, extra: str) -> str:
    if extra == "trt" and machine.is_jetson:
        return bindings_for(machine)
    needs_backend = extra in _NEEDS_BACKEND and not any(map(machine.has, ORT_PACKAGES))
    return install(extra, "cpu") if needs_backend else install(extra)


def _can_tensorrt(machine: Machine) -> bool:
    return machine.gpu is not None and any(
        machine.has(module.replace("_", "-")) and module not in machine.broken
        for module in MODULES.values()
    )
