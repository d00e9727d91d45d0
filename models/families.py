"""The model families that can be exported, the text part of larger models, and why others cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

FAMILIES: dict[str, str] = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "opt": "OPTForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""The supported values of `model_type`, each with the one architecture that is a decoder with a
language-model head."""

_SUPPORTED_HINT = f"Supported architectures: {', '.join(sorted(FAMILIES.values()))}."


_LOOKS_AHEAD = ("paligemma",)
"""Wrappers whose text model sees the whole prompt at once, which a causal decoder cannot compute."""

_TEXT_PART = r"^(?:model\.)?(?:language_model|text_model)\."
"""How the weights of a wrapper's text model begin."""


def check_supported(raw: dict[str, Any], folder: Path) -> None:
    """Refuse a config.json of a kind that cannot be exported.

    A model that wraps a text model (pictures or sound and text) passes: `text_config_of` looks at
    what it wraps.

    Raises:
        CheckpointError: says why and lists the supported architectures.
    """
    family = str(raw.get("model_type", "none given"))
    declared = raw.get("architectures") or [FAMILIES.get(family, family)]
    architecture = str(declared[0]) if isinstance(declared, list) else str(declared)
    if FAMILIES.get(family) == architecture:
        return
    if raw.get("auto_map"):
        raise CheckpointError(
            f"{folder}: {architecture} ({family}) needs Python code from the checkpoint "
            "(auto_map in config.json), which is never run (trust_remote_code).",
            hint=_SUPPORTED_HINT,
        )
    wraps = isinstance(raw.get("text_config"), dict) and family not in _LOOKS_AHEAD
    if not (wraps and architecture.endswith("ForConditionalGeneration")):
        raise unsupported(folder, f"{architecture} (model_type {family})")


def text_config_of(config: Any, folder: Path) -> Any:
    """Return the configuration of the text model: `config` itself, or the part that it wraps.

    Args:
        config: of transformers, accepted by `check_supported`.
        folder: for errors.

    Raises:
        CheckpointError: the text model is not of a supported family.
    """
    if config.model_type in FAMILIES:
        return config
    text = config.get_text_config(decoder=True)
    family = getattr(text, "model_type", None)
    if family not in FAMILIES:
        raise unsupported(folder, f"{config.model_type} with the text model {family}")
    return text


def is_text_weight(name: str) -> bool:
    """Whether a weight of a wrapper belongs to its text model."""
    return name.startswith("lm_head.") or re.match(_TEXT_PART, name) is not None


def text_key_mapping(prefix: str) -> dict[str, str]:
    """Return what transformers renames, pattern to text, to load the text model of a wrapper.

    Args:
        prefix: what the weights of the text model's body begin with, such as `model`.
    """
    return {
        rf"{_TEXT_PART}lm_head\.": "lm_head.",
        rf"{_TEXT_PART}(?:{re.escape(prefix)}\.)?": f"{prefix}.",
    }


def unsupported(path: Path, what: str) -> CheckpointError:
    """Return the error that names an architecture and lists the supported ones."""
    return CheckpointError(f"{path}: architecture {what} is not supported.", hint=_SUPPORTED_HINT)
