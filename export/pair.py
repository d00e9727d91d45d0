"""What is exported: the options, the checkpoints of draft and target, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import UsageError
from ..models.checkpoint import Checkpoint, Precision, open_checkpoint
from ..models.presets import resolve_arbiter, resolve_pair
from ..models.vocabulary import SharedVocabulary, shared_vocabulary
from ..runtime.bundle.certificate import CERTIFICATE
from ..runtime.bundle.manifest import GenerationDefaults, Manifest, ModelEntry, Models
from .arbiter_folder import ArbiterFolder, read_arbiter
from .attention import Lowering
from .decoder_export import DecoderRequest, summary_top
from .memory import MIN_CAPACITY, check_capacity, ensure_fits, plan
from .weights.chosen_weights import QualityLimit, WeightChoice
from .weights.tensorrt_numbers import WeightRequest

DEFAULT_CAPACITY = 2048
"""Tokens of context, unless the models are made for less."""

DEFAULT_NUM_DRAFT_TOKENS = 3
"""Verify passes are then four tokens wide. On CPUs, wider passes are slower."""

DEFAULT_MAX_TOKENS = 256
PREFILL_CHUNK = 64
"""Prompt tokens per forward pass. It keeps the activations of a 150k-word head below 200 MB."""

TOKENIZER_FILE = "tokenizer.json"

_PACKAGES = ("cospec", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how.

    Attributes:
        target: preset, Hugging Face folder, hub id or GGUF file.
        draft: the same, `none`, or None for the preset's own draft.
        lowering: form of the attention block; see `export.attention`. With engines, these choose.
        precision: of weights and cache.
        capacity: tokens of context; None takes DEFAULT_CAPACITY or the models' own limit.
        num_draft_tokens: the bundle's default draft length.
        force: replace an existing bundle.
        arbiter: folder with `model.onnx` and `arbiter.json`, `none`, or None for the preset's own.
        adapter: folder of a LoRA adapter that is merged into the target, or None.
        draft_adapter: the same for the draft.
        chat_template: export the target's chat templates; without, the bundle takes plain text only.
        weights: `keep` leaves quantised weights in their own numbers where the graph can read them and
            that is fast, see `weights.faster_weights`; `exact` leaves all; `fast` gives the target's
            8 bits; fp32 and fp16 make plain numbers of all weights; int8 and int4 quantise those that
            are plain numbers; auto is int4 where the graph can read it, and keeps what is quantised
            already.
        limit: how much quantising may cost.
        draft_weights: those of the draft; None for `weights`.
    """

    target: str
    draft: str | None = None
    lowering: Lowering = "gqa"
    precision: Precision = "fp32"
    capacity: int | None = None
    num_draft_tokens: int = DEFAULT_NUM_DRAFT_TOKENS
    force: bool = False
    arbiter: str | None = None
    adapter: Path | None = None
    draft_adapter: Path | None = None
    chat_template: bool = True
    weights: WeightChoice = "keep"
    limit: QualityLimit = field(default_factory=QualityLimit)
    draft_weights: WeightChoice | None = None

    def weights_of(self, role: str) -> WeightChoice:
        """Return how the weights of a role are stored."""
        return (self.draft_weights if role == "draft" else None) or self.weights

    @property
    def reads_integers(self) -> bool:
        """Whether graphs of this form can read quantised weights."""
        return (self.lowering, self.precision) == ("gqa", "fp32")


@dataclass(frozen=True)
class Pair:
    """The checkpoints of an export, opened.

    Attributes:
        options: what to export, and how.
        checkpoints: by role.
        vocabulary: what they have in common.
        capacity: tokens of context.
        arbiter: the pair's arbiter, or None.
    """

    options: ExportOptions
    checkpoints: Mapping[str, Checkpoint]
    vocabulary: SharedVocabulary
    capacity: int
    arbiter: ArbiterFolder | None

    @property
    def prefill_chunk(self) -> int:
        """Prompt tokens per forward pass."""
        return min(PREFILL_CHUNK, self.capacity)

    def ensure_fits(self, output: Path, roles: Iterable[str] = ("target", "draft")) -> None:
        """Refuse an export of some roles that this machine cannot hold; errors as in `memory`."""
        wanted = [role for role in self.checkpoints if role in roles]
        integers = self.options.reads_integers
        stored = [self.options.weights_of(role) if integers else "fp32" for role in wanted]
        checkpoints = [self.checkpoints[role] for role in wanted]
        ensure_fits(plan(checkpoints, self.options.precision, self.capacity, output, stored))

    def request(
        self,
        role: str,
        lowering: Lowering | None = None,
        tensorrt: WeightRequest | None = None,
    ) -> DecoderRequest:
        """Return what the graph of a role is exported from; with engines, these choose the form."""
        return DecoderRequest(
            role=role,
            checkpoint=self.checkpoints[role],
            lowering=lowering or self.options.lowering,
            precision=self.options.precision,
            capacity=self.capacity,
            vocabulary=self.vocabulary,
            widest=self.options.num_draft_tokens + 1,
            weights=self.options.weights_of(role),
            limit=self.options.limit,
            tensorrt=tensorrt,
        )

    def manifest(self, name: str, entries: Mapping[str, ModelEntry]) -> Manifest:
        """Return the manifest of a bundle for ONNX Runtime with the graphs of these roles."""
        target = self.checkpoints["target"]
        ends = [end for end in target.ends if end.id < self.vocabulary.size]
        return Manifest(
            name=name,
            created_by=package_versions(),
            lowering=self.options.lowering,
            precision=self.options.precision,
            capacity=self.capacity,
            vocab_size=self.vocabulary.size,
            summary_top=summary_top(self.vocabulary.size),
            models=Models(entries["target"], entries.get("draft")),
            generation=GenerationDefaults(
                bos_token_id=target.bos_id,
                eos_token_ids=tuple(end.id for end in ends),
                eos_token_sources=tuple(map(str, ends)),
                num_draft_tokens=self.options.num_draft_tokens,
                max_tokens=min(DEFAULT_MAX_TOKENS, self.capacity),
                prefill_chunk=self.prefill_chunk,
                sampling=target.sampling,
            ),
            tokenizer=TOKENIZER_FILE,
            certificate=CERTIFICATE,
        )


def open_pair(options: ExportOptions) -> Pair:
    """Open the checkpoints of an export without reading their weights; errors as in `export_bundle`."""
    quantising = [options.weights, *filter(None, [options.draft_weights])]
    for weights in quantising:
        if weights in ("int4", "int8") and not options.reads_integers:
            raise UsageError(
                f"graphs in the form {options.lowering} and in {options.precision} cannot read "
                f"{weights} weights",
                hint="leave --weights out, or export for ONNX Runtime: without --trt, --lowering and "
                "--precision",
            )
    if not 0 <= options.num_draft_tokens <= 64:
        raise UsageError(f"--num-draft-tokens is {options.num_draft_tokens}; 0 to 64 is possible")
    target_source, draft_source = resolve_pair(options.target, options.draft)
    target = open_checkpoint(target_source, options.adapter)
    if draft_source is None:
        for option, given in (
            ("an adapter for the draft", options.draft_adapter),
            ("--draft-weights", options.draft_weights),
        ):
            if given is not None:
                raise UsageError(f"{option} needs a draft", hint="name one with --draft")
    draft = open_checkpoint(draft_source, options.draft_adapter) if draft_source else None
    arbiter = _arbiter(options, has_draft=draft is not None)
    vocabulary = shared_vocabulary(target, draft)
    checkpoints = {"target": target, **({"draft": draft} if draft else {})}
    capacity = _capacity(options.capacity, list(checkpoints.values()))
    check_capacity(list(checkpoints.values()), capacity)
    return Pair(options, checkpoints, vocabulary, capacity, arbiter)


def arbiter_folder(options: ExportOptions) -> Path | None:
    """Return the folder of the arbiter that is named, or of the pair's own, or None."""
    if options.adapter is not None and options.arbiter is None:
        return None
    return resolve_arbiter(options.target, options.draft, options.arbiter, options.draft_adapter)


def _arbiter(options: ExportOptions, *, has_draft: bool) -> ArbiterFolder | None:
    """Return the arbiter that goes with this pair, if there is one.

    Raises:
        CheckpointError: the folder is not an arbiter's.
        UsageError: an arbiter without a draft.
    """
    folder = arbiter_folder(options)
    if folder is None:
        return None
    if not has_draft:
        raise UsageError("an arbiter needs a draft model", hint="name one with --draft")
    return read_arbiter(folder)


def _capacity(wanted: int | None, checkpoints: list[Checkpoint]) -> int:
    if wanted is not None:
        return wanted
    limits = [c.max_positions for c in checkpoints if c.max_positions is not None]
    return max(MIN_CAPACITY, min([DEFAULT_CAPACITY, *limits]))


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that make an export."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # onnxruntime also comes as onnxruntime-gpu; whichever is there is recorded
    return found
