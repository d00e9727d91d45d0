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
    from .runtime.integrations.transformers import BundleForCausalLM
    from .runtime.sampling.params import SamplingParams
    from .runtime.trace.record import Trace

_MODULES = {
    "arbitration.protocol": "Arbiter Block",
    "decoding.chat": "Chat",
    "decoding.completion": "Completion Piece Stream",
    "decoding.generation": "Plan",
    "decoding.loop": "Observation Observer",
    "decoding.options": "GenerationOptions",
    "decoding.session": "Session load",
    "decoding.stats": "GenerationStats",
    "drafting.protocol": "Drafter DraftingContext EvidenceDrafter RollbackDrafter",
    "engines.onnxruntime": "OrtOptions",
    "engines.protocol": "StepOutput",
    "integrations.transformers": "BundleForCausalLM",
    "sampling.params": "SamplingParams",
    "trace.record": "Trace",
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Arbiter",
    "BackendError",
    "Block",
    "BundleError",
    "BundleForCausalLM",
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

        return getattr(import_module(f".runtime.{_LAZY[name]}", __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("cospec")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
