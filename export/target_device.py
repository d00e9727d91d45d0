"""Choose the device of an export, and check that its TensorRT accepts the form of the graphs."""

from __future__ import annotations

from ..errors import BackendError, UsageError
from ..runtime.tensorrt.api import find_gpu, flavour_of, import_tensorrt, version_of
from ..runtime.tensorrt.devices import GENERIC, Device, device_of, resolve_device


def choose_device(name: str | None) -> tuple[Device, str | None]:
    """Return the device to export for, and a note if none was named and this machine has no GPU.

    Raises:
        UsageError: there is no device of that name.
    """
    if name is not None:
        return resolve_device(name), None
    try:
        gpu = find_gpu()
        if gpu is None:
            return _any_device("this machine has no GPU")
        trt = import_tensorrt()
    except BackendError as error:  # no driver, or TensorRT is missing or broken
        return _any_device(error.message.removesuffix("."))
    return device_of(gpu, flavour_of(trt), version_of(trt)), None


def _any_device(because: str) -> tuple[Device, str]:
    return GENERIC, (
        f"{because}, so the graphs are for any device with TensorRT {GENERIC.trt_version} or newer; "
        "name yours with --device"
    )


def check_form(device: Device, lowering: str, precision: str) -> None:
    """Refuse a form or a precision that the device's TensorRT does not accept.

    Raises:
        UsageError: names it; the hint says what to use.
    """
    if lowering == "gqa":
        raise UsageError(
            "--lowering gqa is for ONNX Runtime; TensorRT does not read it",
            hint=f"leave --lowering out: {device.name} takes {device.lowering}",
        )
    if lowering == "scatter" and device.lowering == "portable":
        raise UsageError(
            f"{device.name} has TensorRT {device.trt_version}, which does not read --lowering scatter",
            hint="leave --lowering out: it takes portable",
        )
    if precision not in device.precisions:
        raise UsageError(
            f"{device.name} does not compute in {precision}",
            hint=f"one of: {', '.join(device.precisions)}",
        )
    if precision == "fp32" and lowering == "scatter":
        raise UsageError(
            "TensorRT has no fp32 kernel for the Attention operator, which --lowering scatter uses",
            hint="--precision fp16, or --lowering portable",
        )
