"""Which packages an extra lacks."""

from __future__ import annotations

from .machine import Machine

ORT_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-qnn",
)
"""Distributions that write the same folder `onnxruntime`, so that only one may be installed."""


def lacking(machine: Machine, extra: str) -> tuple[list[str], list[str]]:
    """Return the packages of an extra that are missing, and those that are too old."""
    missing, old = [], []
    for wanted in machine.extras.get(extra, ()):
        if wanted.package == "cospec" and wanted.extra is not None:
            inner = lacking(machine, wanted.extra)
            missing += inner[0]
            old += inner[1]
            continue
        version = machine.packages.get(wanted.package)
        if version is None and wanted.package == "onnxruntime":
            # Any of its distributions will do.
            version = next((machine.packages[x] for x in ORT_PACKAGES if machine.has(x)), None)
        if version is None:
            missing.append(wanted.package)
        elif wanted.at_least is not None and numbers(version) < numbers(wanted.at_least):
            old.append(wanted.package)
    return list(dict.fromkeys(missing)), list(dict.fromkeys(old))


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, without zeros at their end, for comparing."""
    found = []
    for part in version.split("."):
        digits = part[: next((i for i, one in enumerate(part) if not one.isdigit()), len(part))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)
