"""LoRA adapters: read, checked against their base model, and merged into its weights by peft."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, MissingExtraError
from .hf import blaming
from .metadata import read_json
from .safetensors_files import ADAPTER
from .source import Source

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
_PROBE = 8
"""Tokens on which the merged model is compared with the model that has the adapter beside it."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA folder as `peft` saves it.

    Attributes:
        folder: holds adapter_config.json and adapter_model.safetensors.
        base: the model that it was trained on, as it names it; may be empty.
    """

    folder: Path
    base: str


def read_adapter(folder: Path, source: Source) -> Adapter:
    """Check the folder of an adapter for the model that `source` names, without reading weights.

    Raises:
        CheckpointError: no LoRA adapter, weights as a pickle only, or the adapter of another model.
    """
    if not (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder} holds no adapter: {ADAPTER} is missing.",
            hint="Name the folder that peft's save_pretrained wrote with --adapter.",
        )
    config = read_json(folder / ADAPTER)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of the kind {config.get('peft_type')}; only LORA can be merged.",
            hint="Merge it with peft (merge_and_unload, save_pretrained) and export the result.",
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: {WEIGHTS} is missing. A pickle (adapter_model.bin) can run code and is not "
            "loaded.",
            hint="Save the adapter again with a recent peft.",
        )
    base = str(config.get("base_model_name_or_path") or "")
    ours, theirs = (Path(name).name.lower() for name in (source.location, base))
    # A local folder may have any name; a hub id is the model.
    if source.kind == "hub" and theirs and not _alike(ours, theirs):
        raise CheckpointError(
            f"The adapter {folder} was trained on {base}, not on {source.location}.",
            hint=f"Name that model: --target {shlex.quote(base)}. If both are the same model, name a "
            "local copy of it.",
        )
    return Adapter(folder, base)


def merge(module: torch.nn.Module, adapter: Adapter) -> torch.nn.Module:
    """Add an adapter to the weights of its base model; return the module, changed in place.

    Raises:
        CheckpointError: the adapter does not fit the model, or the merged model would compute
            something else than the adapter beside its base (as with an adapted embedding that is the
            head, too).
        MissingExtraError: peft is not installed.
    """
    import torch

    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "export", "Merging an adapter") from error
    what = f"it does not fit {type(module).__name__}"
    tolerance = 1e-4 if module.dtype == torch.float32 else 2e-2
    with blaming(adapter.folder, what), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the checks below are stricter
        wrapped = peft.PeftModel.from_pretrained(module, adapter.folder, torch_device="cpu").eval()
        _audit(wrapped, adapter)
        ids = torch.arange(_PROBE).unsqueeze(0)
        beside = wrapped(input_ids=ids).logits.float()
        merged = wrapped.merge_and_unload(safe_merge=True)
        difference = (
            merged(input_ids=ids).logits.float() - beside
        ).abs().max() / beside.abs().max()
    if not difference <= tolerance:
        raise CheckpointError(
            f"{adapter.folder}: merged into its base model, the adapter computes something else "
            f"({difference:.2g} of the largest logit).",
            hint="An adapter of a tied embedding cannot be merged; train one of the other layers.",
        )
    return merged


def _audit(wrapped: Any, adapter: Adapter) -> None:
    """Refuse an adapter with weights that the model has no place for, or without some that it needs."""
    import peft
    from safetensors import safe_open

    with safe_open(adapter.folder / WEIGHTS, framework="np") as tensors:
        stored = set(tensors.keys())
    wanted = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    findings = {
        "too many": stored - wanted - set(wrapped.state_dict()),
        "missing": wanted - stored,
    }
    lines = [f"{len(names)} {what}: {min(names)}" for what, names in findings.items() if names]
    if lines:
        raise CheckpointError(
            f"{adapter.folder}: the adapter does not fit the model. Tensors {'; '.join(lines)}.",
            hint="It belongs to another model, or the copy is incomplete.",
        )


def _alike(one: str, other: str) -> bool:
    """Whether two names may mean one model: quantised copies add to the name (-bnb-4bit)."""
    return one.startswith(other) or other.startswith(one)
