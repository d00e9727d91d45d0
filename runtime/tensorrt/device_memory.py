"""Memory that the engines of a bundle need on a device, estimated before they are built.

An engine holds its weights, its KV cache, and scratch memory and outputs of the widest pass. All
engines of a bundle are on the device together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from ...errors import ResourceError
from ..bundle.files import format_bytes
from ..bundle.manifest import Manifest, ModelEntry, folder_bytes
from .devices import Device

CONTEXT_BYTES = 500 << 20
"""CUDA's context and TensorRT's own code. An assumption, to be replaced by what a device reports."""
SYSTEM_BYTES = 2 << 30
"""Memory of a Jetson's system, which CPU and GPU share. An assumption as well."""

SCRATCH_BYTES = 8 << 20
"""Scratch of an engine whatever its width: what TensorRT-RTX 1.7 reports for all but single tokens."""
SCRATCH_ROWS = 4
"""Scratch of a pass, in rows of logits of all its tokens: an upper bound of what was measured."""
UNPACKED_HEADS = 2.5
"""Scratch in which an engine unpacks weights, in heads of half precision: an upper bound. With
TensorRT-RTX 1.7, SmolLM2 in fp8 took 2.3, and in int8 in blocks 1.1."""


@dataclass(frozen=True)
class EngineMemory:
    """One engine on a device; all sizes in bytes.

    Attributes:
        role: target, draft or arbiter.
        weights: all copies that the engine stores.
        cache: keys and values of all layers, two buffers if the cache is not written in place.
        activations: scratch and outputs of the widest pass.
        stored: what the weights are stored in, for people.
    """

    role: str
    weights: int
    cache: int
    activations: int
    stored: str = ""

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.cache + self.activations


@dataclass(frozen=True)
class DeviceMemory:
    """All engines of a bundle on one device.

    Attributes:
        device: which.
        engines: by role, in the order given.
    """

    device: Device
    engines: tuple[EngineMemory, ...]

    @property
    def reserved(self) -> int:
        """Memory that is not for engines."""
        return CONTEXT_BYTES + (SYSTEM_BYTES if self.device.unified else 0)

    @property
    def total(self) -> int:
        """Memory that is needed in total."""
        return self.reserved + sum(engine.total for engine in self.engines)

    def lines(self) -> list[str]:
        """Return the plan for people: a line for each engine, and the sum."""
        rows = [
            f"{engine.role:<8} {format_bytes(engine.weights)} weights{_in(engine.stored)} + "
            f"{format_bytes(engine.cache)} KV cache + "
            f"{format_bytes(engine.activations)} activations"
            for engine in self.engines
        ]
        has = self.device.memory_bytes
        of = "" if has is None else f" of {format_bytes(has)}"
        return [
            f"Memory on {self.device.name}:",
            *(f"  {row}" for row in rows),
            f"  {'system':<8} {format_bytes(self.reserved)}",
            f"  {'sum':<8} {format_bytes(self.total)}{of}",
        ]

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        engines = {engine.role: asdict(engine) for engine in self.engines}
        for values in engines.values():
            del values["role"]
        return {
            "engines": engines,
            "reserved": self.reserved,
            "total": self.total,
            "device": self.device.memory_bytes,
        }


def _in(stored: str) -> str:
    if not stored:
        return ""
    return " in the checkpoint's own bits" if stored == "keep" else f" in {stored}"


def decoder_memory(
    role: str,
    weight_bytes: int,
    cache_bytes: int,
    lowering: str,
    vocab_size: int,
    widest: int,
    stored: str = "",
    unpacks: int = 0,
) -> EngineMemory:
    """Estimate one decoder.

    Args:
        role: target or draft. A draft's weights are stored twice; see `profiles`.
        weight_bytes: of the graph.
        cache_bytes: of one buffer at full capacity.
        lowering: `portable` copies its cache in each pass, from one buffer to another.
        vocab_size: width of the logits.
        widest: tokens of the widest pass.
        stored: what the weights are stored in, for people.
        unpacks: width of the head, if the engine unpacks weights into scratch memory; else 0.
    """
    logits = widest * vocab_size * 4
    unpacked = int(UNPACKED_HEADS * 2 * vocab_size * unpacks)
    return EngineMemory(
        role=role,
        weights=weight_bytes * (2 if role == "draft" else 1),
        cache=cache_bytes * (2 if lowering == "portable" else 1),
        activations=SCRATCH_BYTES + (SCRATCH_ROWS + 1) * logits + unpacked,
        stored=stored,
    )


def arbiter_memory(graph_bytes: int) -> EngineMemory:
    """Estimate the arbiter, whose weights lie in its graph."""
    return EngineMemory("arbiter", graph_bytes, 0, SCRATCH_BYTES)


def bundle_memory(manifest: Manifest, device: Device, roles: Collection[str]) -> DeviceMemory:
    """Estimate the engines of a bundle on a device, from the sizes of its files.

    Args:
        manifest: of the bundle.
        device: that is to hold them together.
        roles: which of its engines.
    """
    models, chosen = manifest.models, manifest.generation
    widest = max(chosen.prefill_chunk, chosen.num_draft_tokens + 1)
    engines = [
        decoder_memory(
            role,
            folder_bytes(manifest, model.graph),
            model.cache_bytes(manifest.capacity),
            manifest.lowering,
            manifest.vocab_size,
            widest,
            unpacks=model.hidden_size if _unpacks(model, device) else 0,
        )
        for role, model in (("target", models.target), ("draft", models.draft))
        if model is not None and role in roles
    ]
    if models.arbiter is not None and "arbiter" in roles:
        engines.append(arbiter_memory(folder_bytes(manifest, models.arbiter.graph)))
    return DeviceMemory(device, tuple(engines))


def _unpacks(model: ModelEntry, device: Device) -> bool:
    """Say whether an engine unpacks weights: fp8, int8 in blocks, any int8 where it is not known."""
    return any(
        each.bits_per_weight >= 8 and (each.kind != "int8" or not device.dequantises_freely)
        for each in model.kept_weights
    )


def ensure_fits(plan: DeviceMemory, smaller: Sequence[str]) -> None:
    """Refuse engines that the device cannot hold together.

    Args:
        plan: of all engines.
        smaller: alternatives that need less memory, for the hint.

    Raises:
        ResourceError: the whole sum.
    """
    has = plan.device.memory_bytes
    if has is None or plan.total <= has:
        return
    raise ResourceError(
        f"the engines need {format_bytes(plan.total)}, and {plan.device.name} has "
        f"{format_bytes(has)}.\n" + "\n".join(plan.lines()),
        hint=f"ask for less: {', '.join(smaller)}",
    )
