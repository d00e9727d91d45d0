"""TensorRT, JetPack and the bindings: versions that belong together.

Those of docs/tensorrt.md and of `tensorrt/devices.py`. TensorRT, cuda-bindings and the driver's CUDA
go together where their major versions do.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..tensorrt.api import EXTRAS, MODULES, Flavour, release
from ..tensorrt.devices import DEVICES, lowering_for
from .findings import Finding, install, listed, ok, problem, warning
from .machine import Machine

JETPACK_FIX = "sudo apt install nvidia-jetpack"
_VENV = "python3 -m venv --system-site-packages --clear .venv"
_JETPACK_7 = 38
"""The first Jetson Linux of JetPack 7, whose CUDA is 13; that of JetPack 6 is 36, with CUDA 12."""


def check_tensorrt(machine: Machine) -> Iterator[Finding]:
    """Which TensorRT is installed, whether it fits the machine, and which graphs it reads."""
    found = False
    for flavour, module in MODULES.items():
        package = module.replace("_", "-")
        version = machine.packages.get(package)
        if version is None:
            continue
        found = True
        if module in machine.broken:
            fix = JETPACK_FIX if machine.is_jetson else f"pip install --force-reinstall {module}"
            yield problem(module, f"{version} cannot be loaded: {machine.broken[module]}", fix)
            continue
        if package in machine.lacking(EXTRAS[flavour])[1]:
            fix = JETPACK_FIX if machine.is_jetson else f"pip install -U {package}"
            yield problem(module, f"{version} is older than cospec needs", fix)
            continue
        form = lowering_for(flavour, version)
        yield ok(module, f"{version}; reads the form '{form}'{_unlike_jetpack(machine, version)}")
        yield from _check_pairing(machine, flavour, module)
    if found or (machine.gpu is None and not machine.is_jetson):
        return
    if not machine.is_jetson:
        yield ok(
            "tensorrt", "not installed; it runs bundles faster on this GPU", tensorrt_for(machine)
        )
    elif machine.isolated:
        yield warning("tensorrt", "this environment does not see the JetPack's packages", _VENV)
    else:
        yield warning("tensorrt", "not installed; it comes with the JetPack", JETPACK_FIX)


def check_jetpack(machine: Machine) -> Iterator[Finding]:
    """Which JetPack a Jetson has, and the names of its devices."""
    if not machine.is_jetson:
        return
    known = sorted({each.jetpack for each in DEVICES.values() if each.jetpack is not None})
    if machine.jetpack is None:
        yield warning(
            "jetpack",
            f"Jetson Linux {machine.l4t}; the JetPack's package is not there",
            JETPACK_FIX,
        )
        return
    names = [
        name
        for name, each in DEVICES.items()
        if each.jetpack == machine.jetpack and (machine.gpu is None or each.sm == machine.gpu.sm)
    ]
    if not names:
        yield warning(
            "jetpack",
            f"{machine.jetpack} is not among those that cospec knows: {', '.join(known)}",
            "cospec-export --target NAME --trt",
        )
        return
    yield ok("jetpack", f"{machine.jetpack}; export with --device {' or '.join(names)}")


def _check_pairing(machine: Machine, flavour: Flavour, module: str) -> Iterator[Finding]:
    """Whether a TensorRT from a package index fits the CUDA of the driver."""
    prefix = f"{module.replace('_', '-')}-cu"
    majors = {
        int(name[len(prefix) :])
        for name in machine.packages
        if name[len(prefix) :].isdigit() and name.startswith(prefix)
    }
    package = module.replace("_", "-")
    installed = " ".join([package, *(f"{prefix}{major}" for major in sorted(majors))])
    if majors and flavour == "tensorrt" and machine.l4t is not None and not _is_jetpack_7(machine):
        yield problem(
            module,
            "this TensorRT comes from a package index, whose builds are not for JetPack 6",
            f"pip uninstall -y {installed} && {_VENV}",
        )
        return
    driver = machine.cuda_driver
    if driver is not None and majors and min(majors) > driver[0]:
        yield problem(
            module,
            f"it is for CUDA {min(majors)}, and the driver is for CUDA {driver[0]}.{driver[1]}",
            f"pip uninstall -y {installed} && pip install {prefix}{driver[0]}",
        )


def _unlike_jetpack(machine: Machine, version: str) -> str:
    """Return a remark on a TensorRT that is not the one of its JetPack."""
    expected = {
        each.trt_version for each in DEVICES.values() if each.jetpack == machine.jetpack is not None
    }
    if not expected or any(release(version) == release(each) for each in expected):
        return ""
    return f"; JetPack {machine.jetpack} comes with {listed(sorted(expected))}"


def tensorrt_for(machine: Machine) -> str:
    """Return the command that installs TensorRT for the driver at hand."""
    driver = machine.cuda_driver
    if driver is None:
        return install("trt")
    return f"pip install tensorrt-cu{driver[0]} && {bindings_for(machine)}"


def bindings_for(machine: Machine) -> str:
    """Return the command that installs the bindings for the driver at hand."""
    driver = machine.cuda_driver
    if driver is None and machine.l4t is not None:
        driver = (13, 0) if _is_jetpack_7(machine) else (12, 6)
    if driver is None:
        return "pip install cuda-bindings"
    return f'pip install "cuda-bindings=={driver[0]}.*"'


def _is_jetpack_7(machine: Machine) -> bool:
    return machine.l4t is not None and int(machine.l4t.split(".")[0]) >= _JETPACK_7
