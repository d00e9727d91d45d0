"""Choose the device of an export, the form of the attention block, and weights that fit.

Without a choice of the user's, weights are the widest with which all engines fit the device together. A
checkpoint that is in few bits already keeps its own: wider numbers would hold nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from ..errors import BackendError, UsageError
from ..models.checkpoint import BYTES_PER_WEIGHT, Checkpoint
from ..models.gguf import read_header
from ..runtime.tensorrt.api import find_gpu, flavour_of, import_tensorrt, version_of
from ..runtime.tensorrt.device_memory import (
    DeviceMemory,
    arbiter_memory,
    decoder_memory,
    ensure_fits,
)
from ..runtime.tensorrt.devices import (
    GENERIC,
    Device,
    Lowering,
    device_of,
    lowering_for,
    resolve_device,
)
from .memory import kv_cache_bytes
from .weights.tensorrt_numbers import BLOCKS, Choice, WeightRequest

MARGIN = 0.1
"""Share of a device's memory that weights chosen by the exporter leave free."""

_LEVELS: tuple[Choice, ...] = ("fp16", "int8", "int4")
"""From the widest to the narrowest. fp8 is left out: engines unpack it into scratch memory."""
_PLAIN = ("fp32", "fp16")
_SCALE_BITS = 16
_FEW_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8}


@dataclass(frozen=True)
class Sizes:
    """Of an export, as far as they decide what a device must hold.

    Attributes:
        precision: of the arithmetic and the cache.
        capacity: tokens in the cache.
        vocab_size: width of the logits.
        widest: tokens of the widest pass.
        arbiter: its graph, if the bundle gets one.
    """

    precision: str
    capacity: int
    vocab_size: int
    widest: int
    arbiter: Path | None = None


@dataclass(frozen=True)
class EngineChoice:
    """What was chosen.

    Attributes:
        lowering: form of the attention block.
        weights: by role.
        memory: that all engines take.
        reasons: sentences for the user, where a rule decided.
    """

    lowering: Lowering
    weights: dict[str, Choice]
    memory: DeviceMemory
    reasons: tuple[str, ...]

    def request(self, device: Device, role: str) -> WeightRequest | None:
        """Return how the weights of a role are stored; None for plain numbers."""
        choice = self.weights[role]
        if choice in _PLAIN:
            return None
        return WeightRequest(choice, device.dequantises_freely, "int4" in device.precisions)


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


def choose_engines(
    device: Device,
    checkpoints: Mapping[str, Checkpoint],
    sizes: Sizes,
    lowering: Lowering | None = None,
    weights: Choice | Literal["auto"] = "auto",
) -> EngineChoice:
    """Choose what the user did not, and check that the device can hold it.

    Args:
        device: of the engines.
        checkpoints: by role.
        sizes: of the export.
        lowering: the user's choice, or None.
        weights: the user's choice.

    Raises:
        ResourceError: the device cannot hold the engines; names all parts of the sum.
    """
    reasons = []
    if lowering is None:
        heads = {_kv_heads(checkpoint) for checkpoint in checkpoints.values()}
        lowering = lowering_for(device.flavour, device.trt_version, heads)
        if lowering != device.lowering:
            reasons.append(
                f"form {lowering}: a model has a single head of keys and values, which the builder of "
                f"{device.trt_version}'s time fails on in the form {device.lowering}"
            )
    tried = []
    for each in _candidates(device, checkpoints, weights):
        memory = _memory(device, checkpoints, sizes, lowering, each)
        tried.append((each, memory))
        if weights != "auto" or _fits(memory):
            break
    chosen, memory = tried[-1]
    smaller = ["a smaller --capacity", "smaller models", "a larger --device"]
    if weights in ("keep", "fp16", "fp32", "int8", "fp8") and "int4" in device.precisions:
        smaller.insert(0, "--weights int4")
    ensure_fits(memory, smaller)
    if weights == "auto" and len(tried) > 1:
        wider = "/".join(dict.fromkeys(tried[-2][0].values()))
        found = "/".join(dict.fromkeys(chosen.values()))
        why = "the widest that fit" if _fits(memory) else "the narrowest, which do not quite fit"
        reasons.append(
            f"weights {found}: {why} with {MARGIN:.0%} of the memory free; {wider} would not "
            "(--weights decides otherwise)"
        )
    return EngineChoice(lowering, chosen, memory, tuple(reasons))


def check_weights(device: Device, weights: str) -> None:
    """Refuse weights that the device's GPU does not take.

    Raises:
        UsageError: names them; the hint says what to use.
    """
    if weights in (*_PLAIN, "keep", "auto") or weights in device.precisions:
        return
    if weights == "fast":
        raise UsageError("--weights fast is for ONNX Runtime", hint="leave it out, or take int8")
    takes = [each for each in ("fp16", "int8", "int4", "fp8") if each in device.precisions]
    gpu = f"{device.name} (SM {device.sm})"
    hint = f"--weights {', '.join(takes)}, or auto for the widest that fits"
    if device.sm is None:
        gpu, hint = (
            "an unnamed device",
            f"name yours with --device, or --weights {', '.join(takes)}",
        )
    raise UsageError(f"{gpu} does not take weights in {weights}", hint=hint)


def _candidates(
    device: Device, checkpoints: Mapping[str, Checkpoint], weights: Choice | Literal["auto"]
) -> Iterator[dict[str, Choice]]:
    """Yield choices by role, the widest first."""
    if weights != "auto":
        yield dict.fromkeys(checkpoints, weights)
        return
    for level in _LEVELS:
        if level in device.precisions:
            yield {
                role: "keep" if _is_quantised(checkpoint) and level != "int4" else level
                for role, checkpoint in checkpoints.items()
            }


def _fits(memory: DeviceMemory) -> bool:
    has = memory.device.memory_bytes
    return has is None or memory.total <= (1 - MARGIN) * has


def _memory(
    device: Device,
    checkpoints: Mapping[str, Checkpoint],
    sizes: Sizes,
    lowering: Lowering,
    weights: Mapping[str, Choice],
) -> DeviceMemory:
    engines = tuple(
        decoder_memory(
            role,
            weight_bytes(checkpoint, sizes.precision, weights[role], device),
            kv_cache_bytes(checkpoint.config, sizes.capacity, sizes.precision),
            lowering,
            sizes.vocab_size,
            sizes.widest,
            stored=sizes.precision if weights[role] in _PLAIN else weights[role],
            unpacks=checkpoint.config.hidden_size * _unpacks(checkpoint, weights[role], device),
        )
        for role, checkpoint in checkpoints.items()
    )
    if sizes.arbiter is not None:
        engines += (arbiter_memory(sizes.arbiter.stat().st_size),)
    return DeviceMemory(device, engines)


def weight_bytes(checkpoint: Checkpoint, precision: str, choice: Choice, device: Device) -> int:
    """Estimate the weights of an engine, from the checkpoint's headers.

    Args:
        checkpoint: opened.
        precision: of weights in plain numbers.
        choice: how the weights are stored.
        device: decides whether an embedding can be in few bits.
    """
    plain = 8 * BYTES_PER_WEIGHT[precision]
    config = checkpoint.config
    table = int(checkpoint.vocab_size) * int(config.hidden_size)
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    matrices = checkpoint.parameters - table * (1 if is_tied else 2)
    if choice in _PLAIN:
        return checkpoint.parameters * plain // 8
    free = device.dequantises_freely
    linear, head, lookup = _bits(checkpoint, choice, plain, device)
    bits = matrices * linear + table * head
    if not (is_tied and free):
        bits += table * (lookup if free else plain)
    return int(bits / 8)


def _unpacks(checkpoint: Checkpoint, choice: Choice, device: Device) -> bool:
    """Say whether an engine unpacks weights; TensorRT 10 might unpack int8, so it is counted."""
    in_blocks = choice == "keep" and _is_quantised(checkpoint)
    return choice == "fp8" or in_blocks or (choice == "int8" and not device.dequantises_freely)


def _bits(
    checkpoint: Checkpoint, choice: Choice, plain: int, device: Device
) -> tuple[float, float, float]:
    """Return the bits of a weight: of the layers, of the head, of the embedding."""
    block = next((size for size in BLOCKS if checkpoint.config.hidden_size % size == 0), None)
    rounded = 8.0
    if choice == "int4" and block:
        rounded = 4 + _SCALE_BITS / block
    of_floats = float(plain) if choice == "keep" else rounded
    if choice == "fp8" or not _is_quantised(checkpoint):
        return of_floats, of_floats, of_floats
    if checkpoint.packing is not None:
        return _own_bits(checkpoint.packing.bits, choice, device), of_floats, of_floats
    found: dict[str, list[tuple[int, float]]] = {"linear": [], "output": [], "token_embd": []}
    for tensor in read_header(checkpoint.path).tensors:
        if len(tensor.shape) == 2:
            own = _FEW_BITS.get(tensor.kind_name)
            bits = of_floats if own is None else _own_bits(own, choice, device)
            part = tensor.name.partition(".")[0]
            found[part if part in found else "linear"].append((prod(tensor.shape), bits))
    linear, head, lookup = (
        sum(count * bits for count, bits in part) / max(1, sum(count for count, _ in part))
        for part in found.values()
    )
    return linear, head or lookup, lookup


def _own_bits(bits: int, choice: Choice, device: Device) -> float:
    """Return the bits of a weight that was in few bits, with the scales and offsets of its blocks."""
    if bits <= 4 and choice != "int8" and "int4" in device.precisions:
        return 4 + 2 * _SCALE_BITS / BLOCKS[-1]
    return 8 + _SCALE_BITS / 16 if device.dequantises_freely and choice != "int4" else 8.0


def _is_quantised(checkpoint: Checkpoint) -> bool:
    if checkpoint.gguf_file is None:
        return checkpoint.packing is not None
    return any(each.kind_name in _FEW_BITS for each in read_header(checkpoint.path).tensors)


def _kv_heads(checkpoint: Checkpoint) -> int:
    config = checkpoint.config
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
