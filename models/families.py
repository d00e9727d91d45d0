"""The model families that can be exported, and why others cannot."""

from __future__ import annotations

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


def check_supported(raw: dict[str, Any], folder: Path) -> str:
    """Name of the architecture of a config.json, if it is one that can be exported.

    Raises:
        CheckpointError: it is not; says why and lists the supported ones.
    """
    family = str(raw.get("model_type", "none given"))
    declared = raw.get("architectures") or [FAMILIES.get(family, family)]
    architecture = str(declared[0]) if isinstance(declared, list) else str(declared)
    if "quantization_config" in raw or "compression_config" in raw:
        raise CheckpointError(
            f"{folder} is quantised (quantization_config in config.json).",
            hint="Use the unquantised checkpoint, or a GGUF file; cospec quantises at export.",
        )
    if FAMILIES.get(family) == architecture:
        return architecture
    if raw.get("auto_map"):
        raise CheckpointError(
            f"{folder}: {architecture} ({family}) needs Python code from the checkpoint "
            "(auto_map in config.json), which is never run (trust_remote_code).",
            hint=_SUPPORTED_HINT,
        )
    raise unsupported(folder, f"{architecture} (model_type {family})")


def unsupported(path: Path, what: str) -> CheckpointError:
    """The error that names an architecture and lists the supported ones."""
    return CheckpointError(f"{path}: architecture {what} is not supported.", hint=_SUPPORTED_HINT)
