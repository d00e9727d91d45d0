"""What a quantised Hugging Face folder says of its format, and which formats can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..metadata import read_json

METHODS = ("gptq", "awq", "compressed-tensors")

_OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which older tools wrote the settings of a method, instead of config.json."""

_PARTS = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": (
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
    ),
}
_HINT = "Use the unquantised checkpoint, or a GGUF file; cospec quantises at export."


@dataclass(frozen=True)
class PackingConfig:
    """A format of quantised folders.

    Attributes:
        method: one of METHODS.
        kind: what the certificate calls its matrices.
        bits: of a weight.
        zero_offset: what stored zero points lack, for GPTQ.
    """

    method: str
    kind: str
    bits: int
    zero_offset: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Last parts of the names of tensors that make up a quantised matrix."""
        return _PARTS[self.method]

    def parameters(self, name: str, numbers: int) -> int:
        """Return how many weights a stored tensor of so many numbers holds."""
        part = name.rpartition(".")[2]
        if part in ("qweight", "weight_packed"):
            return numbers * 32 // self.bits
        return 0 if part in self.parts else numbers


def packing_config(raw: dict[str, Any], folder: Path) -> PackingConfig | None:
    """Read the format of a folder's weights.

    Args:
        raw: its config.json.
        folder: where older tools left their settings in a file of their own.

    Returns:
        The format, or None where the settings name none.

    Raises:
        CheckpointError: a format that cannot be read; names it.
    """
    settings = raw.get("quantization_config") or raw.get("compression_config")
    if settings is None:
        for file, method in _OWN_FILES.items():
            found = read_json(folder / file, required=False)
            if found:
                settings = {"quant_method": method, **found}
                break
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise _unreadable(folder, "quantization_config is no object")
    method = str(settings.get("quant_method", "none given")).lower().replace("_", "-")
    if method == "gptq":
        return _gptq(settings, folder)
    if method == "awq":
        return _awq(settings, folder)
    if method == "compressed-tensors":
        return _compressed(settings, folder)
    raise _unreadable(folder, f"quant_method {method}")


def _gptq(settings: dict[str, Any], folder: Path) -> PackingConfig:
    bits = _one_of(settings.get("bits"), (2, 4, 8), "bits", folder)
    form = settings.get("checkpoint_format", "gptq")
    if settings.get("dynamic"):
        raise _unreadable(folder, "GPTQ with other settings for some modules (dynamic)")
    version = _one_of(form, ("gptq", "gptq_v2"), "checkpoint_format", folder)
    return PackingConfig("gptq", f"GPTQ {bits}-bit", bits, zero_offset=int(version == "gptq"))


def _awq(settings: dict[str, Any], folder: Path) -> PackingConfig:
    bits = settings.get("bits", settings.get("w_bit"))
    _one_of(bits, (4,), "bits", folder)
    version = str(settings.get("version", "gemm")).lower()
    _one_of(version, ("gemm",), "version", folder)
    return PackingConfig("awq", "AWQ 4-bit", 4)


def _compressed(settings: dict[str, Any], folder: Path) -> PackingConfig:
    form = _one_of(
        settings.get("format"),
        ("pack-quantized", "int-quantized", "naive-quantized"),
        "format",
        folder,
    )
    groups = list((settings.get("config_groups") or {}).values())
    weights = [group.get("weights") or {} for group in groups]
    kinds = {(each.get("type", "int"), each.get("num_bits")) for each in weights}
    if len(kinds) != 1:
        raise _unreadable(folder, f"compressed-tensors with {len(kinds)} kinds of weights")
    (kind, bits), *_ = kinds
    if kind != "int":
        raise _unreadable(folder, f"compressed-tensors with weights of the type {kind}{bits}")
    bits = _one_of(bits, (8,) if form != "pack-quantized" else (2, 4, 8), "num_bits", folder)
    activations = (groups[0].get("input_activations") or {}).get("num_bits", 16)
    return PackingConfig(
        "compressed-tensors", f"compressed-tensors W{bits}A{activations}", int(bits)
    )


def _one_of(value: Any, allowed: Sequence[Any], key: str, folder: Path) -> Any:
    if value not in allowed or isinstance(value, bool):
        known = ", ".join(map(str, allowed))
        raise _unreadable(folder, f"{key} {value!r} (can be read: {known})")
    return value


def _unreadable(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} is quantised in a format that cannot be read: {what}.", hint=_HINT
    )
