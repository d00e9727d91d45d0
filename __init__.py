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
    from .runtime.decoding.chat import Chat
    from .runtime.decoding.completion import Completion, Piece, Stream
    from .runtime.decoding.session import Session, load
    from .runtime.decoding.stats import GenerationStats
    from .runtime.engines.onnxruntime import OrtOptions
    from .runtime.sampling.params import SamplingParams
    from .runtime.trace.record import Trace

_LAZY = {
    "Chat": ".runtime.decoding.chat",
    "Completion": ".runtime.decoding.completion",
    "GenerationStats": ".runtime.decoding.stats",
    "OrtOptions": ".runtime.engines.onnxruntime",
    "Piece": ".runtime.decoding.completion",
    "SamplingParams": ".runtime.sampling.params",
    "Session": ".runtime.decoding.session",
    "Stream": ".runtime.decoding.completion",
    "Trace": ".runtime.trace.record",
    "load": ".runtime.decoding.session",
}

__all__ = [
    "BackendError",
    "BundleError",
    "Chat",
    "CheckpointError",
    "Completion",
    "CospecError",
    "GateError",
    "GenerationStats",
    "MissingExtraError",
    "OrtOptions",
    "Piece",
    "PromptError",
    "ResourceError",
    "SamplingParams",
    "Session",
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
