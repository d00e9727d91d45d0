"""From a bundle to the same with a trimmed draft, and what that changed.

Both drafts serve the same target and take turns, so a machine that slows down slows both down; the
median of every time counts. The target's output is the same with either draft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ...export.weights.chosen_weights import sample_text
from ...runtime.bundle.manifest import ModelEntry
from ...runtime.bundle.reader import Bundle
from ...runtime.bundle.writer import BundleWriter
from ...runtime.decoding.placement import decoder_engine
from ...runtime.decoding.session import Session, codec_of
from ...runtime.drafting.costs import CONTEXT, time_passes
from ...runtime.engines.onnxruntime import OrtEngine, OrtOptions
from ...runtime.engines.protocol import Decoder, Engine
from ..quality.machine_facts import machine_facts
from ..tasks.resolve import resolve_tasks
from ..weights.format_speed import ROUNDS, rate_of
from ..weights.texts import Text, answered, cut_text, read_texts
from .frequency import count, coverage, most_frequent, split
from .trimmed_bundle import commit_trimmed, draft_of, open_untrimmed
from .trimmed_head import trim

STEPS = 20
"""Steps of a draft that are timed in a round."""


@dataclass(frozen=True)
class TrimRequest:
    """The bundle to trim, the number of tokens to keep, and the data to count.

    Attributes:
        bundle: the source's folder.
        output: the new bundle's folder.
        size: tokens to keep.
        texts: a file to count; None for none. Without texts and tasks the lowest ids are kept.
        tasks: tasks whose answers by the target are counted, as `resolve_tasks` reads them; None for
            none.
        items: number of tasks; None for all.
        text_tokens: longest part of the file, and of the answers, in tokens.
        prompts: held-out texts to measure on, at most.
        force: replace a bundle at `output`.
    """

    bundle: Path
    output: Path
    size: int
    texts: Path | None = None
    tasks: str | None = None
    items: int | None = None
    text_tokens: int = 1_000_000
    prompts: int = 8
    force: bool = False


def trim_draft(request: TrimRequest, progress: Callable[[str], None]) -> dict[str, Any]:
    """Count, trim, measure and write; return the new section of the certificate.

    Args:
        request: what to trim.
        progress: called with a line per stage.

    Raises:
        UsageError: data, a size or a bundle that cannot be used.
        BundleError: a damaged source.
        ResourceError: no room on the disk, or a bundle is at the output already.
    """
    source = open_untrimmed(request.bundle, request.output)
    manifest, draft = source.manifest, draft_of(source)
    # An impossible size is refused now, not after the target's answers.
    most_frequent(count([], manifest.vocab_size), request.size, manifest)
    with BundleWriter(request.output, force=request.force) as writer:
        target = _engine(source, "target", manifest.models.target)
        drafts = {"before": _engine(source, "draft", draft)}
        session = Session(manifest, target, drafts["before"], codec_of(source, None))
        counted, held_out = _texts(request, source, session, progress)
        counts, unseen = (count(texts, manifest.vocab_size) for texts in (counted, held_out))
        kept = most_frequent(counts, request.size, manifest)
        progress(f"trimming the draft to {len(kept)} of {manifest.vocab_size} tokens")
        graph = writer.path(draft.graph)
        trim(source.path(draft.graph), graph, kept)
        drafts["after"] = _engine(source, "draft", draft, graph)
        prompts = [text.prompt for text in held_out[: request.prompts]]
        figures = measure(session, target, drafts, prompts, progress)
        for name, path, tokens in (
            ("before", source.path(draft.graph), manifest.vocab_size),
            ("after", graph, len(kept)),
        ):
            figures[name]["draft_bytes"] = sum(f.stat().st_size for f in path.parent.iterdir())
            figures[name]["head_weights"] = tokens * draft.hidden_size
        facts = {
            "kept_tokens": len(kept),
            "vocab_size": manifest.vocab_size,
            "coverage": {
                "counted": coverage(counts, kept) if counted else None,
                "held_out": coverage(unseen, kept),
            },
            **figures,
            "data": {
                "texts": None if request.texts is None else request.texts.name,
                "tasks": request.tasks,
                "counted_tokens": int(counts.sum()),
                "held_out_tokens": int(unseen.sum()),
                "prompts": len(prompts),
            },
            "environment": machine_facts(),
        }
        progress(f"writing {writer.destination}")
        commit_trimmed(source, writer, len(kept), facts)
    return facts


def measure(
    source: Session,
    target: Engine,
    drafts: Mapping[str, Engine],
    prompts: Sequence[Sequence[int]],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Let drafts take turns; return the `acceptance` and the times of each by name.

    Args:
        source: a session of the bundle; its manifest and codec are used.
        target: engine of the target.
        drafts: engines by name.
        prompts: prompts of the outputs.
        progress: called with a line per round.

    Raises:
        UsageError: every output ends at once, so there is nothing to time.
        BackendError: an engine fails.
    """
    rates: dict[str, list[float]] = {name: [] for name in drafts}
    steps: dict[str, list[float]] = {name: [] for name in drafts}
    acceptance: dict[str, float | None] = {}
    decoders = {name: engine.decoder() for name, engine in drafts.items()}
    for decoder in decoders.values():
        _time_steps(decoder, 2)  # buffers are made in the first
    for number in range(ROUNDS):
        progress(f"measuring on {len(prompts)} held-out texts, round {number + 1} of {ROUNDS}")
        for name, engine in drafts.items():
            session = Session(source.manifest, target, engine, source.codec)
            # Buffers of each width are made when it first occurs.
            session.continue_tokens(prompts[0], max_tokens=8).completion()
            found = rate_of(session, prompts, None)
            rates[name].append(found.tokens_per_second)
            acceptance[name] = found.acceptance
        for name, decoder in decoders.items():
            steps[name] += _time_steps(decoder, STEPS)
    return {
        name: {
            "acceptance": acceptance[name],
            "tokens_per_second": median(rates[name]),
            "draft_step_seconds": median(steps[name]),
        }
        for name in drafts
    }


def _time_steps(decoder: Decoder, count: int) -> list[float]:
    """Return the seconds of steps of one token after a short context."""
    context = min(CONTEXT, decoder.capacity // 2)
    (seconds,) = time_passes(decoder, context, range(1, 2), count)
    return seconds


def _engine(source: Bundle, role: str, entry: ModelEntry, graph: Path | None = None) -> OrtEngine:
    """Load a model of the bundle, or the graph that was made of it."""
    # With the default threads: all cores, as when the bundle is used.
    path = graph or source.path(entry.graph)
    return decoder_engine(path, source.manifest, role, entry, OrtOptions())


def _texts(
    request: TrimRequest, source: Bundle, session: Session, progress: Callable[[str], None]
) -> tuple[list[Text], list[Text]]:
    """Return the texts to count and the held-out ones: a share of each kind of data."""
    if request.texts is None and request.tasks is None:
        limit = request.text_tokens
        text = sample_text()
        return [], cut_text(text, "the default text", session.codec, source.manifest, limit)
    kinds = []
    if request.texts is not None:
        progress(f"reading {request.texts}")
        kinds.append(read_texts(request.texts, session.codec, source.manifest, request.text_tokens))
    if request.tasks is not None:
        tasks = resolve_tasks(request.tasks, items=request.items)
        progress(f"answering {len(tasks)} tasks with the target")
        kinds.append(answered(session, tasks, request.text_tokens))
    parts = [split(texts) for texts in kinds]
    # Measure on answers first, if there are any: they are closer to what a draft has to predict.
    return [t for part in parts for t in part[0]], [t for part in reversed(parts) for t in part[1]]
