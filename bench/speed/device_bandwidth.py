"""Memory of devices that we do not have, for projections."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError


@dataclass(frozen=True)
class Memory:
    """One device.

    Attributes:
        name: what the user types.
        gigabytes_per_second: the maker's peak bandwidth, in 10^9 bytes a second.
        gigabytes: how much memory there is.
        source: where the maker says so.
    """

    name: str
    gigabytes_per_second: float
    gigabytes: float
    source: str


_JETSON = "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
_THOR = "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-thor/"
_3060 = "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"

DEVICES = {
    device.name: device
    for device in (
        Memory("orin-nano", 68, 8, _JETSON),
        Memory("orin-nano-super", 102, 8, _JETSON),
        Memory("orin-nx", 102.4, 16, _JETSON),
        Memory("agx-orin", 204.8, 64, _JETSON),
        Memory("thor", 273, 128, _THOR),
        Memory("rtx-3060", 360, 12, _3060),
        Memory("rtx-4090", 1008, 24, _ADA),
    )
}


def device_named(name: str) -> Memory:
    """Return one device.

    Raises:
        UsageError: it is not in the table.
    """
    if name not in DEVICES:
        raise UsageError(f"unknown device '{name}'", hint=f"the devices are: {', '.join(DEVICES)}")
    return DEVICES[name]
