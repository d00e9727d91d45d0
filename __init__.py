"""CoSpec: collaborative speculative decoding on edge devices.

    session = cospec.load("models/tiny")
    print(session.generate("...").text)

Importing this package needs numpy only; everything else is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BackendError,
    BundleError,
    CheckpointError,
    CospecError,
    GateError,
    MissingExtraError,
    PromptError,
    ResourceError,
    UsageError,
)

if TYPE_CHECKING:
    from .runtime.arbitration.protocol import Arbiter, Block
    from .runtime.decoding.chat import Chat
    from .runtime.decoding.completion import Completion, Piece, Stream
    from .runtime.decoding.generation import Plan
    from .runtime.decoding.loop import Observation, Observer
    from .runtime.decoding.options import GenerationOptions
    from .runtime.decoding.session import Session, load
    from .runtime.decoding.stats import GenerationStats
    from .runtime.drafting.protocol import (
        Drafter,
        DraftingContext,
        EvidenceDrafter,
        RollbackDrafter,
    )
    from .runtime.engines.onnxruntime import OrtOptions
    from .runtime.engines.protocol import StepOutput
    from .runtime.sampling.params import SamplingParams
    from .runtime.trace.record import Trace

_LAZY = {
    "Arbiter": ".runtime.arbitration.protocol",
    "Block": ".runtime.arbitration.protocol",
    "Chat": ".runtime.decoding.chat",
    "Completion": ".runtime.decoding.completion",
    "Drafter": ".runtime.drafting.protocol",
    "DraftingContext": ".runtime.drafting.protocol",
    "EvidenceDrafter": ".runtime.drafting.protocol",
    "GenerationOptions": ".runtime.decoding.options",
    "GenerationStats": ".runtime.decoding.stats",
    "Observation": ".runtime.decoding.loop",
    "Observer": ".runtime.decoding.loop",
    "OrtOptions": ".runtime.engines.onnxruntime",
    "Piece": ".runtime.decoding.completion",
    "Plan": ".runtime.decoding.generation",
    "RollbackDrafter": ".runtime.drafting.protocol",
    "SamplingParams": ".runtime.sampling.params",
    "Session": ".runtime.decoding.session",
    "StepOutput": ".runtime.engines.protocol",
    "Stream": ".runtime.decoding.completion",
    "Trace": ".runtime.trace.record",
    "load": ".runtime.decoding.session",
}

__all__ = [
    "Arbiter",
    "BackendError",
    "Block",
    "BundleError",
    "Chat",
    "CheckpointError",
    "Completion",
    "CospecError",
    "Drafter",
    "DraftingContext",
    "EvidenceDrafter",
    "GateError",
    "GenerationOptions",
    "GenerationStats",
    "MissingExtraError",
    "Observation",
    "Observer",
    "OrtOptions",
    "Piece",
    "Plan",
    "PromptError",
    "ResourceError",
    "RollbackDrafter",
    "SamplingParams",
    "Session",
    "StepOutput",
    "Stream",
    "Trace",
    "UsageError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name], __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("cospec")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
