"""CoSpec: collaborative speculative decoding on edge devices.

    session = cospec.load("models/tiny")
    print(session.generate("...").text)

Importing this package needs numpy only; everything else is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .runtime.errors import (
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
    from .runtime.chat import Chat
    from .runtime.completion import Completion, Piece, Stream
    from .runtime.engines.onnxruntime import OrtOptions
    from .runtime.sampling.params import SamplingParams
    from .runtime.session import Session, load
    from .runtime.stats import GenerationStats
    from .runtime.trace import Trace

_LAZY = {
    "Chat": ".runtime.chat",
    "Completion": ".runtime.completion",
    "GenerationStats": ".runtime.stats",
    "OrtOptions": ".runtime.engines.onnxruntime",
    "Piece": ".runtime.completion",
    "SamplingParams": ".runtime.sampling.params",
    "Session": ".runtime.session",
    "Stream": ".runtime.completion",
    "Trace": ".runtime.trace",
    "load": ".runtime.session",
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
