"""Open checkpoints: what an export must know of them, and modules with audited weights.

`open_checkpoint` reads configurations and headers only; `load_module` reads the weights. Code of a
checkpoint is never run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError
from ..runtime.bundle.manifest import SamplingDefaults
from . import gguf
from .adapter import Adapter, merge, read_adapter
from .ends import EndToken, end_tokens, stated
from .families import (
    FAMILIES,
    check_supported,
    is_text_weight,
    text_config_of,
    text_key_mapping,
    unsupported,
)
from .fast_tokenizer import load_tokenizer
from .hf import blaming, quiet, transformers_class
from .metadata import (
    fix_rotation,
    max_positions,
    read_json,
    sampling_defaults,
)
from .safetensors_files import ADAPTER, other_kind, read_weight_files
from .source import Source, fetch
from .weights.gguf_kinds import FLOATS
from .weights.packing_config import PackingConfig, packing_config

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16"]
BYTES_PER_WEIGHT: dict[str, int] = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class Checkpoint:
    """Everything about a checkpoint but its weights.

    Attributes:
        source: what the user passed.
        folder: of its files.
        gguf_file: name of the GGUF file in `folder`, or None for a Hugging Face checkpoint.
        config: transformers' configuration object.
        architecture: class name, such as LlamaForCausalLM.
        family: `model_type`, a key of FAMILIES.
        vocab_size: rows of the embedding and the head; may be padded beyond the tokenizer.
        max_positions: longest context that the model can express, or None for no limit.
        weight_files: in load order.
        parameters: weights stored; a tied embedding counts once.
        other_weights: names of stored weights of a wrapper that are no part of its text model.
        bos_id: id of the first token of a text, or None.
        stated_ends: (source, id) of each token that the files' own settings call an end.
        default_end: what transformers takes for the end if nothing names one, or None.
        sampling: the author's sampling parameters; None for greedy decoding.
        adapter: what `load_module` merges into the weights, or None.
        packing: the format of a folder's quantised matrices, or None.
    """

    source: Source
    folder: Path
    gguf_file: str | None
    config: Any = field(repr=False)
    architecture: str
    family: str
    vocab_size: int
    max_positions: int | None
    weight_files: tuple[Path, ...] = field(repr=False)
    parameters: int
    other_weights: frozenset[str] = field(repr=False)
    bos_id: int | None
    stated_ends: tuple[tuple[str, int], ...] = field(repr=False)
    default_end: int | None = field(repr=False)
    sampling: SamplingDefaults | None = field(repr=False)
    adapter: Adapter | None = None
    packing: PackingConfig | None = None

    @property
    def name(self) -> str:
        """The name that the user passed."""
        return self.source.name

    @property
    def path(self) -> Path:
        """The folder or the GGUF file, for messages."""
        return self.folder / self.gguf_file if self.gguf_file else self.folder

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, loaded on first use; errors as in `load_tokenizer`."""
        return load_tokenizer(self.path, self.config)

    @functools.cached_property
    def ends(self) -> tuple[EndToken, ...]:
        """The tokens that end an output; errors as in `load_tokenizer`."""
        return end_tokens(self)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids of `ends`."""
        return tuple(end.id for end in self.ends)

    @property
    def is_quantised(self) -> bool:
        """Whether weights are stored in integers, which an export can keep."""
        if self.gguf_file is None:
            return self.packing is not None
        tensors = gguf.read_header(self.path).tensors
        return any(tensor.kind_name not in FLOATS for tensor in tensors)

    def weight_bytes(self, precision: str) -> int:
        """Size of the weights once exported, in bytes; `precision` is a key of BYTES_PER_WEIGHT."""
        return self.parameters * BYTES_PER_WEIGHT[precision]


def open_checkpoint(source: Source, adapter: Path | None = None) -> Checkpoint:
    """Fetch a checkpoint, and check and describe it without reading its weights.

    Args:
        source: the model.
        adapter: folder of a LoRA adapter of this model, to be merged into it.

    Raises:
        CheckpointError: it cannot be downloaded, is damaged, or is not a supported kind of model; or
            the adapter belongs to another model.
        ResourceError: no room for a download.
        MissingExtraError: transformers is not installed.
    """
    path = fetch(source)
    checkpoint = _open_gguf(source, path) if path.is_file() else _open_folder(source, path)
    if adapter is None:
        return checkpoint
    if checkpoint.gguf_file:
        raise CheckpointError(
            f"{path} is a GGUF file, which no adapter can be merged into.",
            hint="Name the Hugging Face checkpoint of this model with --target or --draft.",
        )
    return replace(checkpoint, adapter=read_adapter(adapter, source))


def load_module(
    checkpoint: Checkpoint, dtype: torch.dtype, *, attention: str = "eager"
) -> torch.nn.Module:
    """Return the transformers module with its weights, in eval mode and without gradients.

    Weights are converted one tensor at a time, so there is never a second copy of the model.

    Args:
        checkpoint: from `open_checkpoint`.
        dtype: of the weights in memory.
        attention: `attn_implementation`, such as "eager", "sdpa" or a registered name.

    Raises:
        CheckpointError: the weights do not fit the architecture: a tensor is missing, left over
            or of another shape.
        ResourceError: out of memory.
    """
    module = from_files(checkpoint, dtype=dtype, attention=attention)
    if checkpoint.adapter is not None:
        module = merge(module, checkpoint.adapter)
    return module.eval().requires_grad_(False)


def from_files(
    checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str = "eager", **settings: Any
) -> Any:
    """Return what transformers makes of a checkpoint's own files, with every weight accounted for.

    Args:
        checkpoint: from `open_checkpoint`.
        dtype: of the weights in memory.
        attention: `attn_implementation`.
        settings: other arguments of `from_pretrained`.

    Raises:
        CheckpointError, ResourceError: see `load_module`.
    """
    auto = transformers_class("AutoModelForCausalLM")
    files: dict[str, Any] = {"use_safetensors": True}
    if checkpoint.gguf_file:
        files = {"gguf_file": checkpoint.gguf_file}
    elif checkpoint.other_weights:
        body = transformers_class(checkpoint.architecture).base_model_prefix
        files["key_mapping"] = text_key_mapping(body)
    with quiet(), blaming(checkpoint.path, "its weights cannot be loaded"):
        module, report = auto.from_pretrained(
            checkpoint.folder,
            # A copy: transformers writes dtype and attention into it.
            config=copy.deepcopy(checkpoint.config),
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            # They are then listed in the report instead of raised.
            ignore_mismatched_sizes=True,
            **files,
            **settings,
        )
    left_over = sorted(report["unexpected_keys"] - checkpoint.other_weights)
    if checkpoint.gguf_file:
        header = gguf.read_header(checkpoint.path)
        names, _ = gguf.tensor_names(header, module)
        left_over += [tensor.name for tensor in header.tensors if tensor.name not in names]
    audit(
        checkpoint,
        missing=sorted(report["missing_keys"]),
        left_over=left_over,
        mismatched=sorted(str(key[0]) for key in report["mismatched_keys"]),
        broken=list(report["error_msgs"]),
    )
    return module


def _open_folder(source: Source, folder: Path) -> Checkpoint:
    has_config, has_adapter = ((folder / f).is_file() for f in ("config.json", ADAPTER))
    # transformers would load an adapter that lies beside a model, if peft is installed.
    if (has_adapter or not has_config) and (other := other_kind(folder)):
        raise other
    raw = read_json(folder / "config.json")
    check_supported(raw, folder)
    packing = packing_config(raw, folder)
    weights = read_weight_files(folder, packing)
    with blaming(folder / "config.json", "transformers does not accept it"):
        whole = transformers_class("AutoConfig").from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    config = text_config_of(whole, folder)
    sizes = weights.sizes
    if config is not whole:
        sizes = {name: size for name, size in sizes.items() if is_text_weight(name)}
        # The wrapper says whether the head is tied; a head in the files is one of its own.
        has_head = any(name.endswith("lm_head.weight") for name in sizes)
        tied = getattr(whole, "tie_word_embeddings", False) or config.tie_word_embeddings
        config.tie_word_embeddings = tied and not has_head
    generation = read_json(folder / "generation_config.json", required=False)
    ends = stated("generation_config.json", generation.get("eos_token_id"))
    for part in (raw, raw.get("text_config") or {}):
        ends += stated("config.json", part.get("eos_token_id"))
    limit = max_positions(config)
    fix_rotation(config)
    return Checkpoint(
        source=source,
        folder=folder,
        gguf_file=None,
        config=config,
        architecture=FAMILIES[config.model_type],
        family=config.model_type,
        vocab_size=config.vocab_size,
        max_positions=limit,
        weight_files=weights.files,
        parameters=sum(sizes.values()),
        other_weights=frozenset(weights.sizes.keys() - sizes.keys()),
        bos_id=config.bos_token_id,
        stated_ends=tuple(ends),
        default_end=_default_end(config),
        sampling=sampling_defaults(folder / "generation_config.json"),
        packing=packing,
    )


def _open_gguf(source: Source, file: Path) -> Checkpoint:
    header = gguf.read_header(file)
    gguf.check_header(file, header)
    with quiet(), blaming(file, "transformers does not accept its header"):
        config = gguf.read_config(header)
    if config.model_type not in FAMILIES:
        raise unsupported(file, config.model_type)
    gguf.check_config(file, header, config)
    return Checkpoint(
        source=source,
        folder=file.parent,
        gguf_file=file.name,
        config=config,
        architecture=FAMILIES[config.model_type],
        family=config.model_type,
        vocab_size=config.vocab_size,
        max_positions=max_positions(config),
        weight_files=(file,),
        parameters=header.parameters,
        other_weights=frozenset(),
        bos_id=header.metadata.get("tokenizer.ggml.bos_token_id"),
        stated_ends=tuple(
            end
            for key in ("eos", "eot", "eom")
            for end in stated(
                f"{key}_token_id", header.metadata.get(f"tokenizer.ggml.{key}_token_id")
            )
        ),
        default_end=None,
        sampling=None,
    )


def _default_end(config: Any) -> int | None:
    """Return the end that transformers falls back to, from a configuration without one."""
    default = config.eos_token_id
    return default if isinstance(default, int) and 0 <= default < config.vocab_size else None


def audit(
    checkpoint: Checkpoint,
    *,
    missing: list[str],
    left_over: list[str],
    mismatched: list[str],
    broken: Sequence[str] = (),
) -> None:
    """Refuse a checkpoint that does not hold exactly what its architecture asks for.

    Tied weights and buffers that the family computes itself are no finding.

    Raises:
        CheckpointError: names up to three tensors of each kind of fault.
    """
    findings = {
        "missing from the files": missing,
        "in the files but not in the architecture": left_over,
        "of another shape": mismatched,
        "not convertible": broken,
    }
    lines = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in findings.items()
        if names
    ]
    if lines:
        raise CheckpointError(
            f"{checkpoint.path}: the weights do not fit {checkpoint.architecture}. "
            f"Tensors {'; '.join(lines)}.",
            hint="The checkpoint is incomplete, or its config.json belongs to another model.",
        )
