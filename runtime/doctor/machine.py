"""The facts about a machine that the checks use, and how to read them.

The checks use nothing else, so that a test can describe any machine.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ...errors import MissingExtraError
from ..engines.host_memory import machine_memory
from ..tensorrt.api import Gpu, read_gpu

MODULES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda.bindings.runtime")
"""Packages with native libraries, which may be installed and not load."""

_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvhost-gpu", "/usr/lib/wsl/lib/libcuda.so.1")
"""One of these is there where NVIDIA's driver is: on a PC, on a Jetson, in WSL."""
_L4T = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
ORT_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-qnn",
)
"""Distributions that write the same folder `onnxruntime`, so that only one may be installed."""


@dataclass(frozen=True)
class Machine:
    """The facts about a machine.

    Attributes:
        system: `Linux`, `Windows` or `Darwin`.
        arch: `x86_64` or `aarch64`, as Python names it.
        python: its version.
        packages: installed distributions by normalised name, with their versions.
        extras: what each extra of cospec requires; `""` is the base.
        broken: modules of MODULES that are installed and cannot be imported, and why.
        providers: execution providers of ONNX Runtime.
        gpu: the first that CUDA sees.
        cuda_driver: newest CUDA of the driver, as (12, 6).
        has_driver: whether the system has NVIDIA's driver, with or without Python bindings.
        l4t: Jetson Linux, such as `36.4.3`.
        jetpack: of a Jetson, where its package is installed, such as `6.2`.
        memory: bytes of RAM in all.
        memory_free: bytes of it that programs can still have.
        disk_free: bytes on the disk of the bundle, or of the current folder.
        isolated: in a virtual environment that does not see the system's packages.
    """

    system: str
    arch: str
    python: tuple[int, int, int]
    packages: Mapping[str, str]
    extras: Mapping[str, tuple[Requirement, ...]]
    broken: Mapping[str, str] = field(default_factory=dict)
    providers: tuple[str, ...] = ()
    gpu: Gpu | None = None
    cuda_driver: tuple[int, int] | None = None
    has_driver: bool = False
    l4t: str | None = None
    jetpack: str | None = None
    memory: int | None = None
    memory_free: int | None = None
    disk_free: int | None = None
    isolated: bool = False

    @property
    def is_jetson(self) -> bool:
        """Whether this is a Jetson board."""
        return self.l4t is not None

    def has(self, package: str) -> bool:
        """Whether a distribution is installed."""
        return package in self.packages

    def lacking(self, extra: str) -> tuple[list[str], list[str]]:
        """Return the packages of an extra that are missing, and those that are too old."""
        missing, old = [], []
        for wanted in self.extras.get(extra, ()):
            if wanted.name == "cospec":
                for inner in wanted.extras:
                    more = self.lacking(inner)
                    missing += more[0]
                    old += more[1]
                continue
            name = canonicalize_name(wanted.name)
            # Any distribution of ONNX Runtime will do.
            names = ORT_PACKAGES if name == "onnxruntime" else (name,)
            version = next((self.packages[each] for each in names if self.has(each)), None)
            if version is None:
                missing.append(name)
            elif not _satisfies(version, wanted):
                old.append(name)
        return list(dict.fromkeys(missing)), list(dict.fromkeys(old))

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain values; of the packages those that cospec knows."""
        known = {canonicalize_name(one.name) for all_of in self.extras.values() for one in all_of}
        prefixes = ("onnxruntime", "tensorrt", "cuda-")
        value = asdict(self)
        value["packages"] = {
            name: version
            for name, version in sorted(self.packages.items())
            if name in known or name == "cospec" or name.startswith(prefixes)
        }
        del value["extras"]
        return value


def probe(folder: Path) -> Machine:
    """Read the machine at hand; `folder` is on the disk that matters."""
    memory, memory_free = machine_memory()
    broken, providers = _import_all()
    gpu, cuda_driver = _cuda(broken)
    release = _text("/etc/nv_tegra_release")
    return Machine(
        system=platform.system(),
        arch=platform.machine(),
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        packages={
            canonicalize_name(found.metadata["Name"]): found.version
            for found in importlib.metadata.distributions()
            if found.metadata["Name"]
        },
        extras=_extras(),
        broken=broken,
        providers=providers,
        gpu=gpu,
        cuda_driver=cuda_driver,
        has_driver=any(Path(path).exists() for path in _DRIVER_FILES),
        l4t=parse_l4t(release),
        jetpack=None if release is None else parse_dpkg(_text("/var/lib/dpkg/status")),
        memory=memory,
        memory_free=memory_free,
        disk_free=shutil.disk_usage(_existing(folder)).free,
        isolated=_isolated(),
    )


def parse_l4t(text: str | None) -> str | None:
    """Return the release in /etc/nv_tegra_release: `36.4.3`."""
    found = _L4T.search(text or "")
    return None if found is None else f"{found[1]}.{found[2]}"


def parse_dpkg(text: str | None) -> str | None:
    """Return the JetPack in Debian's list of packages, `6.2`; boards flashed without it have none."""
    for entry in (text or "").split("\n\n"):
        if entry.startswith("Package: nvidia-jetpack\n") and " installed\n" in entry:
            found = re.search(r"^Version: (\d+\.\d+)", entry, re.MULTILINE)
            return None if found is None else found[1]
    return None


def parse_extras(
    requirements: Iterable[str], names: Iterable[str]
) -> dict[str, tuple[Requirement, ...]]:
    """Return what each extra requires, from the lines of `Requires-Dist`, and the base under `""`."""
    extras: dict[str, list[Requirement]] = {name: [] for name in ("", *names)}
    for wanted in map(Requirement, requirements):
        marker = wanted.marker
        in_base = marker is None or marker.evaluate({"extra": ""})
        for name, found in extras.items():
            if in_base == (name == "") and (marker is None or marker.evaluate({"extra": name})):
                found.append(wanted)
    return {name: tuple(found) for name, found in extras.items()}


def _extras() -> dict[str, tuple[Requirement, ...]]:
    try:
        about = importlib.metadata.metadata("cospec")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        return {}
    names = about.get_all("Provides-Extra") or []
    return parse_extras(importlib.metadata.requires("cospec") or [], names)


def _satisfies(version: str, wanted: Requirement) -> bool:
    """Whether a version is new enough; a release candidate or NVIDIA's own build of one is."""
    try:
        return wanted.specifier.contains(Version(version).base_version)
    except InvalidVersion:
        return True  # an unknown form of version: it cannot be compared


def _import_all() -> tuple[dict[str, str], tuple[str, ...]]:
    """Import MODULES; return the errors, and the providers of ONNX Runtime."""
    broken: dict[str, str] = {}
    providers: tuple[str, ...] = ()
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            if name == "onnxruntime":
                providers = tuple(module.get_available_providers())
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                broken[name] = str(error)
        # Two packages in one folder leave a module without its functions.
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            broken[name] = " ".join(str(error).split())
    return broken, providers


def _cuda(broken: Mapping[str, str]) -> tuple[Gpu | None, tuple[int, int] | None]:
    from ..tensorrt.cuda import import_cuda

    if "cuda.bindings.runtime" in broken:
        return None, None
    try:
        cudart = import_cuda()
    except MissingExtraError:
        return None, None
    status, version = cudart.cudaDriverGetVersion()
    known = int(status) == 0 and version > 0
    return read_gpu(cudart), (version // 1000, version % 1000 // 10) if known else None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))


def _isolated() -> bool:
    if sys.prefix == sys.base_prefix:
        return False
    settings = _text(str(Path(sys.prefix, "pyvenv.cfg"))) or ""
    return not re.search(r"^include-system-site-packages\s*=\s*true", settings, re.M | re.I)
