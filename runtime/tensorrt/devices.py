"""The devices that engines are built for, and the graphs that each of them accepts.

The JetPack of a Jetson decides its TensorRT, so a board has one name for each JetPack. Sources:
NVIDIA's JetPack release notes and the version reports named in docs/tensorrt.md. The precisions of
SM 75, 80, 86, 89 and 120 were read off the ahead-of-time builder of TensorRT-RTX 1.7; those of the
other SMs follow from the same generation of tensor cores and are not verified.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ...errors import UsageError
from .api import Flavour, Gpu, release

Lowering = Literal["scatter", "portable"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4"]

GIB = 1 << 30
SCATTER_SINCE = (10, 15)
"""First TensorRT whose parser reads TensorScatter. Every TensorRT-RTX from 1.4 does."""

SINGLE_KV_HEAD_FAILS: dict[Flavour, tuple[tuple[int, int], tuple[int, int]]] = {
    "rtx": ((1, 0), (1, 5)),
    "tensorrt": (SCATTER_SINCE, (11, 0)),
}
"""From, and before, the versions whose builder fails on `scatter` with a single KV head: TensorRT-RTX
1.4 does, 1.5 does not. TensorRT 10.15 and 10.16 have the API of 1.4 and are assumed to be alike."""
DEQUANTISES_FREELY_SINCE = (11, 0)

_TURING: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_AMPERE: tuple[Precision, ...] = (*_TURING, "bf16", "int4")
_ADA: tuple[Precision, ...] = (*_AMPERE, "fp8")
_BLACKWELL: tuple[Precision, ...] = (*_ADA, "nvfp4")
_PRECISIONS: dict[int, tuple[Precision, ...]] = {
    75: _TURING,
    80: _AMPERE,
    86: _AMPERE,
    87: _AMPERE,
    89: _ADA,
    90: _ADA,
    100: _BLACKWELL,
    110: _BLACKWELL,
    120: _BLACKWELL,
    121: _BLACKWELL,
}


@dataclass(frozen=True)
class Device:
    """A machine that engines are built for.

    Attributes:
        name: the value of `--device`.
        sm: compute capability of its GPU, 87 for 8.7; None for the GPU of the machine that builds.
        flavour: which TensorRT it runs.
        trt_version: of that flavour: the JetPack's, or the newest that was checked.
        lowering: the form of the attention block that this version reads.
        precisions: of weights that its GPU computes with.
        memory_bytes: nominal; None if only the machine that builds knows it.
        jetpack: of a Jetson.
        unified: whether CPU and GPU share the memory.
    """

    name: str
    sm: int | None
    flavour: Flavour
    trt_version: str
    lowering: Lowering
    precisions: tuple[Precision, ...]
    memory_bytes: int | None
    jetpack: str | None = None
    unified: bool = False

    @property
    def dequantises_freely(self) -> bool:
        """Whether more than products of int4 may read quantised weights: embeddings, blocks of int8.

        NVIDIA documents weights in few bits with activations in many for products of int4 in blocks
        only. TensorRT-RTX 1.7 was seen to build the others, so TensorRT 11, of its time, gets them.
        """
        newer = release(self.trt_version) >= DEQUANTISES_FREELY_SINCE
        return self.flavour == "rtx" or newer


def _jetson(name: str, sm: int, jetpack: str, trt_version: str, gib: int) -> Device:
    return Device(
        name=f"{name}-jp{jetpack}",
        sm=sm,
        flavour="tensorrt",
        trt_version=trt_version,
        lowering=lowering_for("tensorrt", trt_version),
        precisions=precisions_of(sm),
        memory_bytes=gib * GIB,
        jetpack=jetpack,
        unified=True,
    )


def _card(name: str, sm: int, gib: int, flavour: Flavour) -> Device:
    version = {"tensorrt": "11.4", "rtx": "1.7"}[flavour]
    lowering = lowering_for(flavour, version)
    return Device(name, sm, flavour, version, lowering, precisions_of(sm), gib * GIB)


def lowering_for(flavour: Flavour, version: str, kv_heads: Collection[int] = ()) -> Lowering:
    """Return the best form that a TensorRT version reads, and builds for models with these KV heads."""
    first, fixed = SINGLE_KV_HEAD_FAILS[flavour]
    if 1 in kv_heads and first <= release(version) < fixed:
        return "portable"
    if flavour == "rtx" or release(version) >= SCATTER_SINCE:
        return "scatter"
    return "portable"


def precisions_of(sm: int) -> tuple[Precision, ...]:
    """Precisions of weights that an SM computes with; an unknown one is taken for the next older."""
    known = [number for number in _PRECISIONS if number <= sm]
    return _PRECISIONS[max(known)] if known else ("fp32",)


_ORIN = {"orin-nano": 8, "orin-nx": 16, "agx-orin": 64}
_ORIN_JETPACKS = {"6.1": "10.3", "6.2": "10.3", "7.2": "10.16"}
_THOR_JETPACKS = {"7.0": "10.13", "7.1": "10.13", "7.2": "10.16"}
_RTX_CARDS = {
    "rtx-2080": (75, 8),
    "rtx-3060": (86, 12),
    "rtx-3080": (86, 10),
    "rtx-3090": (86, 24),
    "rtx-a6000": (86, 48),
    "rtx-4060": (89, 8),
    "rtx-4070": (89, 12),
    "rtx-4080": (89, 16),
    "rtx-4090": (89, 24),
    "rtx-5070": (120, 12),
    "rtx-5080": (120, 16),
    "rtx-5090": (120, 32),
}
_DATA_CENTRE_CARDS = {
    "t4": (75, 16),
    "a10": (86, 24),
    "a100": (80, 80),
    "l4": (89, 24),
    "l40s": (89, 48),
    "h100": (90, 80),
    "h200": (90, 141),
    "b200": (100, 180),
}

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        *(
            _jetson(name, 87, jetpack, version, gib)
            for name, gib in _ORIN.items()
            for jetpack, version in _ORIN_JETPACKS.items()
        ),
        *(_jetson("thor", 110, jetpack, trt, 128) for jetpack, trt in _THOR_JETPACKS.items()),
        *(_card(name, sm, gib, "rtx") for name, (sm, gib) in _RTX_CARDS.items()),
        *(_card(name, sm, gib, "tensorrt") for name, (sm, gib) in _DATA_CENTRE_CARDS.items()),
    )
}
# All releases of JetPack 6 have the same TensorRT.
ALIASES = {f"{name}-jp6": f"{name}-jp6.2" for name in _ORIN}

GENERIC = Device(
    name="generic",
    sm=None,
    flavour="tensorrt",
    trt_version=".".join(map(str, SCATTER_SINCE)),
    lowering="scatter",
    precisions=_TURING,
    memory_bytes=None,
)
"""Any machine with TensorRT 10.15 or newer, which builds the engines later."""


def resolve_device(name: str) -> Device:
    """Return the device of that name.

    Raises:
        UsageError: there is none; the hint lists the names that begin alike, or all of them.
    """
    wanted = name.lower()
    if wanted in ALIASES:
        return replace(DEVICES[ALIASES[wanted]], name=wanted)
    if wanted in DEVICES:
        return DEVICES[wanted]
    names = [*DEVICES, *ALIASES]
    alike = sorted(known for known in names if known.startswith(wanted + "-"))
    if alike:
        raise UsageError(
            f"the device '{name}' needs its JetPack named, which decides the TensorRT version",
            hint=f"one of: {', '.join(alike)}",
        )
    raise UsageError(f"unknown device '{name}'", hint=f"one of: {', '.join(sorted(names))}")


def device_of(gpu: Gpu, flavour: Flavour, trt_version: str) -> Device:
    """Describe this machine, from its GPU and the TensorRT that is installed."""
    return Device(
        name=gpu.name,
        sm=gpu.sm,
        flavour=flavour,
        trt_version=trt_version,
        lowering=lowering_for(flavour, trt_version),
        precisions=precisions_of(gpu.sm),
        memory_bytes=gpu.memory_bytes,
        unified=gpu.unified,
    )
