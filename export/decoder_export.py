"""One checkpoint to one graph on the disk that has passed the gate."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from msgspec.structs import replace

from ..models.checkpoint import Checkpoint, Precision
from ..models.source import HUB_ID
from ..models.vocabulary import SharedVocabulary
from ..models.weights.gguf_weights import refuse_unkept
from ..models.weights.streamed_model import StreamedModel, module_of, streamed_model
from ..runtime.bundle.manifest import MAX_UNSHARED, ModelEntry
from ..runtime.drafting.costs import pass_seconds
from ..runtime.drafting.draft_length import LONGEST_AUTO_DRAFT
from ..runtime.engines.onnxruntime import OrtEngine, OrtOptions
from ..runtime.engines.protocol import GraphShape
from . import gate, graph
from .attention import Lowering
from .decoder import SUMMARY_TOP
from .probes import Probe, reference
from .weights.chosen_weights import ChosenWeights, QualityLimit, WeightChoice, choose
from .weights.products import halve
from .weights.stored_matrix import Ledger
from .weights.tensorrt_numbers import WeightRequest
from .weights.tensorrt_weights import TensorRtWeights
from .weights.written_weights import WrittenWeights

_DTYPE = {"fp32": torch.float32, "fp16": torch.float16}
_CACHE_DTYPE = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class DecoderRequest:
    """What to export, and how.

    Attributes:
        role: target or draft.
        checkpoint: opened.
        lowering: form of the attention block.
        precision: of the arithmetic, the cache, and weights that are plain numbers.
        capacity: tokens of context.
        vocabulary: of the pair.
        widest: the widest verify pass.
        weights: see `pipeline.ExportOptions`.
        limit: how much quantising the weights may cost.
        tensorrt: quantised weights of a graph for TensorRT, or None.
    """

    role: str
    checkpoint: Checkpoint
    lowering: Lowering
    precision: Precision
    capacity: int
    vocabulary: SharedVocabulary
    widest: int
    weights: WeightChoice
    limit: QualityLimit = field(default_factory=QualityLimit)
    tensorrt: WeightRequest | None = None

    @property
    def reads_integers(self) -> bool:
        """Whether the graph reads quantised weights. Those for TensorRT and in fp16 cannot."""
        plain = self.weights in ("fp32", "fp16")
        return not plain and (self.lowering, self.precision) == ("gqa", "fp32")

    @property
    def unshared(self) -> dict[int, str]:
        """Tokens that are never proposed, with the reasons."""
        return self.vocabulary.unshared if self.role == "draft" else {}


@dataclass(frozen=True)
class Exported:
    """A graph that has passed the gate.

    Attributes:
        entry: of the manifest.
        parity: the gate's report.
        quantised: what quantising the weights costs; None where that was not measured.
    """

    entry: ModelEntry
    parity: dict[str, Any]
    quantised: dict[str, Any] | None


def export_decoder(request: DecoderRequest, path: Path, report: Callable[[str], None]) -> Exported:
    """Write one graph and pass it through the gate.

    No more than a layer's weights are in memory, beside what running the graph takes.

    Args:
        request: what and how.
        path: of the graph; its weights go beside it.
        report: called with the name of each stage as it begins: six times.

    Raises:
        CheckpointError: the weights do not fit the architecture, or are of a kind that is not kept.
        GateError: the graph does not compute what its weights say, or quantising costs too much.
        UsageError: see `chosen_weights.choose`.
    """
    role, size = request.role, request.vocabulary.size
    dtype = _DTYPE[request.precision]
    ledger = Ledger() if request.reads_integers or request.tensorrt else None
    if request.reads_integers and request.checkpoint.gguf_file:
        refuse_unkept(request.checkpoint.path)
    report(f"{role}: opening the weights")
    with streamed_model(request.checkpoint, dtype) as model:
        report(f"{role}: choosing the weights")
        chosen = _choose(request, model)
        report(f"{role}: tracing the graph")
        for_tensorrt = None
        if request.tensorrt is not None and ledger is not None:
            for_tensorrt = TensorRtWeights(model.weights, model.hollow, request.tensorrt, ledger)
        traced = graph.trace(
            model.hollow,
            request.lowering,
            request.capacity,
            size,
            request.unshared,
            chosen.weights,
            ledger if request.reads_integers else None,
            for_tensorrt.replace if for_tensorrt else None,
        )
        if chosen.halves:
            halve(traced.model)
        report(f"{role}: writing the graph")
        graph.write(traced, path)
        report(f"{role}: computing the reference")
        module = model.module
        if chosen.is_quantised:
            module = module_of(
                request.checkpoint,
                dtype,
                WrittenWeights(path, traced.places, model.weights, chosen.transposed),
            )
        elif for_tensorrt is not None:
            module = module_of(request.checkpoint, dtype, for_tensorrt.written(path, dtype))
        probes = reference(
            module,
            request.capacity,
            size,
            request.widest,
            _windows(request.checkpoint),
            unshared=request.unshared,
        )
    shape = GraphShape(
        capacity=request.capacity,
        vocab_size=size,
        hidden_size=traced.hidden_size,
        summary_top=summary_top(size),
        kv_shapes=traced.kv_shapes,
        cache_dtype=_CACHE_DTYPE[request.precision],
    )
    # What is mapped counts as memory until nobody holds it.
    halves, facts = chosen.halves, chosen.facts
    del model, module, for_tensorrt, traced, chosen
    gc.collect()
    report(f"{role}: checking the graph")
    kept = () if ledger is None else ledger.entries()
    entry = ModelEntry(
        graph=f"{role}/{path.name}",
        source=_source(request.checkpoint),
        architecture=request.checkpoint.architecture,
        parameters=request.checkpoint.parameters,
        hidden_size=shape.hidden_size,
        kv_shapes=shape.kv_shapes,
        cache_dtype=shape.cache_dtype,  # type: ignore[arg-type]
        unshared=_listed(request.unshared),
        kept_weights=kept,
    )
    tolerance = "fp16" if halves else request.precision
    in_blocks = request.reads_integers and bool(kept)
    parity, engine = _checked(path, shape, probes, role, tolerance, quantised=in_blocks)
    if request.lowering == "gqa" and request.precision == "fp32":
        widest = LONGEST_AUTO_DRAFT + 1 if role == "target" else 1
        seconds = pass_seconds(engine.decoder(), widest)
        entry = replace(entry, pass_seconds=tuple(float(f"{each:.3g}") for each in seconds))
    return Exported(entry, parity, facts)


def _choose(request: DecoderRequest, model: StreamedModel) -> ChosenWeights:
    if not request.reads_integers:
        halves = request.weights == "fp16" and request.precision == "fp32"
        return ChosenWeights(model.weights, halves=halves)
    return choose(
        request.weights,
        request.role,
        request.checkpoint,
        model,
        request.limit,
        request.vocabulary.size,
    )


def summary_top(vocab_size: int) -> int:
    """Return how many candidates a row of the graph's summary holds."""
    return min(SUMMARY_TOP, vocab_size)


def _checked(
    path: Path,
    shape: GraphShape,
    probes: list[Probe],
    role: str,
    tolerance: str,
    *,
    quantised: bool,
) -> tuple[dict[str, Any], OrtEngine]:
    """Compare the graph with the reference: computed in fp32, then as it will be run.

    Returns:
        The gate's report, and the engine of the graph.
    """
    options = OrtOptions(provider="cpu", low_memory=shape.cache_dtype == "float16")
    if not quantised:
        engine = OrtEngine(path, shape, options)
        return gate.check(engine, probes, tolerance, role).to_json(), engine
    exact = path.with_name("exact.onnx")
    _compute_in_fp32(path, exact)
    report = gate.check(OrtEngine(exact, shape, options), probes, tolerance, role).to_json()
    exact.unlink()
    engine = OrtEngine(path, shape, options, even_passes=role == "target")
    return {**report, "int8_activations": gate.check_in_int8(engine, probes, role)}, engine


def _compute_in_fp32(path: Path, output: Path) -> None:
    """Write the graph with products that compute in fp32; it reads the same data file."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, output)


def _windows(checkpoint: Checkpoint) -> list[int]:
    window = getattr(checkpoint.config, "sliding_window", None)
    return [window] if isinstance(window, int) else []


def _source(checkpoint: Checkpoint) -> str:
    """Return where a model comes from, with its adapter."""
    label, adapter = checkpoint.source.label, checkpoint.adapter
    if adapter is None:
        return label
    base = adapter.base
    if base and not HUB_ID.fullmatch(base):
        base = Path(base).name  # of the machine that trained it
    trained_on = f" (trained on {base})" if base else ""
    return f"{label} with the adapter {adapter.folder.resolve().name}{trained_on}"


def _listed(unshared: dict[int, str]) -> tuple[str, ...]:
    """Return the tokens that a draft never proposes as the manifest lists them."""
    lines = [f"{index}: {why}" for index, why in unshared.items()]
    more = len(lines) - MAX_UNSHARED + 1
    return tuple(lines if more <= 1 else [*lines[: MAX_UNSHARED - 1], f"and {more} more"])
