"""The table of devices, names that are not in it, and the machine at hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cospec.errors import UsageError
from cospec.runtime.tensorrt.api import Gpu, read_gpu, release
from cospec.runtime.tensorrt.devices import DEVICES, device_of, precisions_of, resolve_device

SUCCESS, NO_DRIVER = 0, 35


@pytest.mark.parametrize(
    ("name", "sm", "version", "lowering"),
    [
        ("agx-orin-jp6", 87, "10.3", "portable"),
        ("orin-nano-jp6.1", 87, "10.3", "portable"),
        ("agx-orin-jp7.2", 87, "10.16", "scatter"),
        ("thor-jp7.1", 110, "10.13", "portable"),
        ("thor-jp7.2", 110, "10.16", "scatter"),
        ("rtx-4090", 89, "1.7", "scatter"),
        ("H100", 90, "11.4", "scatter"),
    ],
)
def test_what_a_device_asks_for(name, sm, version, lowering):
    device = resolve_device(name)
    assert device.name == name.lower()
    assert (device.sm, device.trt_version, device.lowering) == (sm, version, lowering)
    assert "fp16" in device.precisions


def test_scatter_is_for_versions_that_read_it():
    for device in DEVICES.values():
        if device.flavour == "tensorrt":
            assert (device.lowering == "scatter") == (release(device.trt_version) >= (10, 15))
    assert {device.flavour for device in DEVICES.values()} == {"tensorrt", "rtx"}


def test_an_unknown_name_lists_all():
    with pytest.raises(UsageError, match="unknown device 'gameboy'") as refused:
        resolve_device("gameboy")
    assert all(name in refused.value.hint for name in ("agx-orin-jp6", "thor-jp7.2", "rtx-5090"))


def test_a_board_without_its_jetpack_lists_its_own():
    with pytest.raises(UsageError, match="needs its JetPack named") as refused:
        resolve_device("thor")
    assert refused.value.hint == "one of: thor-jp7.0, thor-jp7.1, thor-jp7.2"


def test_precisions_grow_with_the_generation():
    assert "int4" not in precisions_of(75)
    assert "fp8" not in precisions_of(87)
    assert "fp8" in precisions_of(89)
    assert "nvfp4" in precisions_of(110)
    assert precisions_of(88) == precisions_of(87), "an unknown SM is taken for the next older"


def test_this_machine():
    device = device_of(Gpu("Orin", 87, 32 << 30, unified=True), "tensorrt", "10.3.0.30")
    assert (device.sm, device.lowering, device.memory_bytes) == (87, "portable", 32 << 30)


def cudart(status: int, count: int | None) -> SimpleNamespace:
    """A cuda.bindings.runtime of one GPU."""
    properties = SimpleNamespace(
        name=b"NVIDIA Orin", major=8, minor=7, totalGlobalMem=1 << 33, integrated=1
    )
    return SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=SUCCESS),
        cudaGetDeviceCount=lambda: (status, count),
        cudaGetDeviceProperties=lambda index: (SUCCESS, properties),
    )


def test_the_gpu_is_read_from_cuda():
    assert read_gpu(cudart(SUCCESS, 1)) == Gpu("NVIDIA Orin", 87, 1 << 33, unified=True)


@pytest.mark.parametrize(("status", "count"), [(NO_DRIVER, None), (SUCCESS, 0)])
def test_no_driver_is_no_gpu(status, count):
    assert read_gpu(cudart(status, count)) is None
