"""From a bundle to the same with a trimmed draft, and what that changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...runtime.bundle.manifest import ModelEntry
from ...runtime.bundle.reader import Bundle
from ...runtime.bundle.writer import BundleWriter
from ...runtime.decoding.placement import graph_shape
from ...runtime.decoding.session import Session
from ...runtime.engines.onnxruntime import OrtEngine, OrtOptions
from ...runtime.text.codec import TextCodec
from ..quality.machine_facts import machine_facts
from ..tasks.resolve import resolve_tasks
from ..weights.texts import Text, answered, read_texts
from .frequency import count, coverage, most_frequent, split
from .trimmed_bundle import commit_trimmed, draft_of, open_untrimmed
from .trimmed_head import trim
from .trimming_trial import measure

FP32_BYTES = 4


@dataclass(frozen=True)
class TrimRequest:
    """What to trim, to how many tokens, on what data.

    Attributes:
        bundle: the source's folder.
        output: the new bundle's folder.
        size: tokens to keep.
        texts: a file to count; None for none.
        tasks: whose answers by the target are counted, as `resolve_tasks` reads them; None for none.
        items: tasks to use; None for all.
        text_tokens: tokens to use at most, of the file and of the answers.
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


def trim_draft(request: TrimRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Count, trim, measure and write; return what the new bundle's certificate says of it.

    Args:
        request: what is wanted.
        say: told what is being done.

    Raises:
        UsageError: data, a size or a bundle that cannot be used.
        BundleError: a damaged source.
        ResourceError: no room on the disk, or a bundle is at the output already.
    """
    source = open_untrimmed(request.bundle, request.output)
    if request.texts is None and request.tasks is None:
        raise UsageError("nothing to count", hint="give --texts FILE, --tasks TASKS or both")
    manifest, draft = source.manifest, draft_of(source)
    # A size that cannot be is refused now, not after the target's answers.
    most_frequent(count([], manifest.vocab_size), request.size, manifest)
    with BundleWriter(request.output, force=request.force) as writer:
        target = _engine(source, manifest.models.target)
        drafts = {"before": _engine(source, draft)}
        session = Session(manifest, target, drafts["before"], _codec(source))
        counted, held_out = _texts(request, source, session, say)
        counts, unseen = (count(texts, manifest.vocab_size) for texts in (counted, held_out))
        kept = most_frequent(counts, request.size, manifest)
        say(f"trimming the draft to {len(kept)} of {manifest.vocab_size} tokens")
        graph = writer.path(draft.graph)
        trim(source.path(draft.graph), graph, kept)
        drafts["after"] = _engine(source, draft, graph)
        prompts = [text.prompt for text in held_out[: request.prompts]]
        figures = measure(session, target, drafts, prompts, say)
        for name, path, tokens in (
            ("before", source.path(draft.graph), manifest.vocab_size),
            ("after", graph, len(kept)),
        ):
            figures[name]["draft_bytes"] = sum(f.stat().st_size for f in path.parent.iterdir())
            figures[name]["head_bytes"] = tokens * draft.hidden_size * FP32_BYTES
        facts = {
            "kept_tokens": len(kept),
            "vocab_size": manifest.vocab_size,
            "coverage": {
                "counted": coverage(counts, kept),
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
        say(f"writing {writer.destination}")
        commit_trimmed(source, writer, len(kept), facts)
    return facts


def _engine(source: Bundle, entry: ModelEntry, graph: Path | None = None) -> OrtEngine:
    """Load a model of the bundle, or what was made of it."""
    # Without threads of its own it takes all cores, as it will when the bundle is used.
    shape = graph_shape(source.manifest, entry)
    return OrtEngine(graph or source.path(entry.graph), shape, OrtOptions())


def _codec(source: Bundle) -> TextCodec:
    """Open the bundle's tokenizer and its chat template, which tasks may need."""
    manifest = source.manifest
    template = manifest.chat_template
    return TextCodec(
        source.path(manifest.tokenizer), None if template is None else source.path(template)
    )


def _texts(
    request: TrimRequest, source: Bundle, session: Session, say: Callable[[str], None]
) -> tuple[list[Text], list[Text]]:
    """Return the texts to count and the held-out ones, of each kind of data a share."""
    kinds = []
    if request.texts is not None:
        say(f"reading {request.texts}")
        kinds.append(read_texts(request.texts, session.codec, source.manifest, request.text_tokens))
    if request.tasks is not None:
        tasks = resolve_tasks(request.tasks, items=request.items)
        say(f"answering {len(tasks)} tasks with the target")
        kinds.append(answered(session, tasks, request.text_tokens))
    parts = [split(texts) for texts in kinds]
    # Answers, where there are any, say more of what a draft is asked: they are measured on first.
    return [t for part in parts for t in part[0]], [t for part in reversed(parts) for t in part[1]]
