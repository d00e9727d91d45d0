"""The whole export: from two checkpoints to one sealed bundle."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models.checkpoint import Checkpoint, Precision, open_checkpoint
from ..models.presets import resolve_arbiter, resolve_pair
from ..models.vocabulary import shared_vocabulary, tokenizer_json
from ..runtime.bundle.certificate import CERTIFICATE, write_certificate
from ..runtime.bundle.manifest import GenerationDefaults, Manifest, ModelEntry, Models
from ..runtime.bundle.writer import BundleWriter
from ..runtime.text.codec import TextCodec
from .arbiter_folder import ArbiterFolder, read_arbiter
from .attention import Lowering
from .decoder_export import DecoderRequest, export_decoder, summary_top
from .memory import MIN_CAPACITY, ensure_fits, plan
from .publish import provenance_of
from .tensorrt_choice import Sizes
from .tensorrt_export import EngineExport
from .text_gate import check_text, write_chat
from .weights.chosen_weights import QualityLimit, WeightChoice

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


def export_bundle(
    options: ExportOptions,
    output: Path,
    report: Callable[[str], None] = lambda stage: None,
    engines: EngineExport | None = None,
) -> Path:
    """Export draft and target, check both graphs, and write the bundle at `output`.

    The name does not exist before every graph has passed the gate, and nothing is left after a failure.

    Args:
        options: what and how.
        output: the bundle's folder.
        report: called with the name of each stage as it begins; see `stages`.
        engines: the TensorRT part, or None for graphs only.

    Raises:
        CheckpointError: a checkpoint cannot be downloaded, is damaged, unsupported, or does not fit.
        UsageError: an option that the models cannot honour.
        ResourceError: no room, no permission, another writer, or a bundle that is there already.
        GateError: a graph does not compute what its checkpoint computes, a prompt is not the one that
            transformers makes, or TensorRT does not take a graph.
    """
    form = (options.lowering, options.precision)
    if options.weights in ("int4", "int8") and form != ("gqa", "fp32"):
        raise UsageError(
            f"graphs in the form {form[0]} and in {form[1]} cannot read {options.weights} weights",
            hint="leave --weights out, or export for ONNX Runtime: without --trt, --lowering and "
            "--precision",
        )
    if not 0 <= options.num_draft_tokens <= 64:
        raise UsageError(f"--num-draft-tokens is {options.num_draft_tokens}; 0 to 64 is possible")
    target_source, draft_source = resolve_pair(options.target, options.draft)
    report("reading the checkpoints")
    target = open_checkpoint(target_source, options.adapter)
    if options.draft_adapter is not None and draft_source is None:
        raise UsageError("an adapter for the draft needs a draft", hint="name one with --draft")
    draft = open_checkpoint(draft_source, options.draft_adapter) if draft_source else None
    arbiter = _arbiter(options, has_draft=draft is not None)
    vocabulary = shared_vocabulary(target, draft)
    checkpoints = {"target": target, **({"draft": draft} if draft else {})}
    capacity = _capacity(options.capacity, list(checkpoints.values()))
    stored = options.weights if form == ("gqa", "fp32") else "fp32"
    ensure_fits(plan(list(checkpoints.values()), options.precision, capacity, output, stored))
    prefill_chunk = min(PREFILL_CHUNK, capacity)
    lowering, chosen = options.lowering, None
    if engines is not None:
        widest = max(prefill_chunk, options.num_draft_tokens + 1)
        graph = arbiter.graph if arbiter else None
        sizes = Sizes(options.precision, capacity, vocabulary.size, widest, graph)
        chosen = engines.choose(checkpoints, sizes)
        lowering = chosen.lowering
    with BundleWriter(output, force=options.force) as writer:
        report("checking the text")
        chat, text_facts = _export_text(writer, target, with_chat=options.chat_template)
        # Patterns of the package regex leave garbage with finalizers. A Ctrl-C that arrives while
        # Python collects it is lost, so it is collected before the long steps begin.
        gc.collect()
        entries: dict[str, ModelEntry] = {}
        parity: dict[str, Any] = {}
        quantised: dict[str, Any] = {}
        for role, checkpoint in checkpoints.items():
            request = DecoderRequest(
                role=role,
                checkpoint=checkpoint,
                lowering=lowering,
                precision=options.precision,
                capacity=capacity,
                vocabulary=vocabulary,
                widest=options.num_draft_tokens + 1,
                weights=options.weights,
                limit=options.limit,
                tensorrt=chosen.request(engines.device, role) if engines and chosen else None,
            )
            exported = export_decoder(request, writer.path(f"{role}/model.onnx"), report)
            entries[role], parity[role] = exported.entry, exported.parity
            if exported.quantised is not None:
                quantised[role] = exported.quantised
        arbiter_entry = None if arbiter is None else arbiter.add_to(writer.staging)
        ends = [end for end in target.ends if end.id < vocabulary.size]
        manifest = Manifest(
            name=writer.destination.name,
            created_by=_versions(),
            lowering=lowering,
            precision=options.precision,
            capacity=capacity,
            vocab_size=vocabulary.size,
            summary_top=summary_top(vocabulary.size),
            models=Models(entries["target"], entries.get("draft"), arbiter_entry),
            generation=GenerationDefaults(
                bos_token_id=target.bos_id,
                eos_token_ids=tuple(end.id for end in ends),
                eos_token_sources=tuple(map(str, ends)),
                num_draft_tokens=options.num_draft_tokens,
                max_tokens=min(DEFAULT_MAX_TOKENS, capacity),
                prefill_chunk=prefill_chunk,
                sampling=target.sampling,
            ),
            tokenizer=TOKENIZER_FILE,
            chat_template=chat,
            certificate=CERTIFICATE,
            engines=engines.entry if engines else None,
        )
        certificate: dict[str, Any] = {
            "environment": _versions(),
            "provenance": {role: provenance_of(each) for role, each in checkpoints.items()},
            "parity": parity,
            "text": text_facts,
        }
        if quantised:
            certificate["quantised"] = quantised
        if engines is not None:
            engines.check(writer.staging, manifest, report)
            certificate["engines"] = engines.checks
        if arbiter is not None:
            certificate["quality"] = arbiter.quality_on(writer.sha256_of)
        write_certificate(writer.staging, certificate)
        report("sealing the bundle")
        return writer.commit(manifest)


def stages(options: ExportOptions, *, engines: bool = False) -> int:
    """Return how often `export_bundle` will call `report`, with or without TensorRT `engines`."""
    models = 1 if resolve_pair(options.target, options.draft)[1] is None else 2
    arbiters = 0 if resolve_arbiter(options.target, options.draft, options.arbiter) is None else 1
    return 3 + models * 6 + (models + arbiters if engines else 0)


class StageBar:
    """A progress bar over the stages of an export; silent when stderr is not a terminal."""

    def __init__(self, options: ExportOptions, *, engines: bool) -> None:
        self._options = options
        self._engines = engines
        self._bar: Any = None

    def __enter__(self) -> StageBar:
        return self

    def begin(self, stage: str) -> None:
        """Show `stage` as the current one."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=stages(self._options, engines=self._engines),
                disable=not sys.stderr.isatty(),
                bar_format="{desc:<32} {bar} {n}/{total} [{elapsed}]",
            )
        else:
            self._bar.update()
        self._bar.set_description_str(stage)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._bar is not None:
            if error is None:
                self._bar.update()
            self._bar.close()


def _export_text(
    writer: BundleWriter, target: Checkpoint, *, with_chat: bool
) -> tuple[str | None, dict[str, Any]]:
    """Write what turns text into tokens and pass it through the gate.

    Returns:
        The chat format's file, if there is one, and the certificate's section on text.
    """
    tokenizer_file = writer.path(TOKENIZER_FILE)
    tokenizer_file.write_text(tokenizer_json(target), encoding="utf-8")
    chat = write_chat(writer.staging, target.tokenizer, target.name) if with_chat else None
    codec = TextCodec(tokenizer_file, None if chat is None else writer.path(chat))
    return chat, check_text(writer.staging, codec, target.tokenizer, target.name)


def _arbiter(options: ExportOptions, *, has_draft: bool) -> ArbiterFolder | None:
    """Return the arbiter that goes with this pair, if there is one.

    Raises:
        CheckpointError: the folder is not an arbiter's.
        UsageError: an arbiter without a draft.
    """
    folder = resolve_arbiter(options.target, options.draft, options.arbiter)
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


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # onnxruntime also comes as onnxruntime-gpu; whichever is there is recorded
    return found
