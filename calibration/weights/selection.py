"""From checkpoints to a bundle in the fastest of their weight formats that are good enough.

Every format is exported as `cospec-export` does and measured against the checkpoint. The target's must
keep within the limits. The draft's cannot change what `strict` puts out, so only its speed counts: a
worse draft is accepted less often. Of the combinations that are left, the fastest on this CPU is
written.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...export.pair import ExportOptions, Pair, open_pair, package_versions
from ...export.pipeline import Steps
from ...export.weights.bit_recipes import WINDOW, token_count
from ...export.weights.chosen_weights import QualityLimit, cut_windows
from ...models.checkpoint import Checkpoint
from ...runtime.bundle.files import sha256_of
from ...runtime.bundle.writer import BundleWriter
from ..journal import digest
from ..quality.machine_facts import machine_facts
from ..tasks.checkers import require_working
from ..tasks.item import Task
from ..tasks.resolve import resolve_tasks
from .candidates import Trial
from .request import Formats, WeightsRequest, choose_formats, parse_formats
from .work_folder import work_folder


def choose_weights(request: WeightsRequest) -> dict[str, Any]:
    """Export, measure, choose and write; return the section `weights` of the new certificate.

    A run that was killed is continued from `OUTPUT.work`, which is deleted at the end.

    Args:
        request: what is wanted.

    Raises:
        UsageError: data, formats or options that cannot be used, or an unfinished job of another
            request.
        CheckpointError: a checkpoint that cannot be read.
        GateError: no format is within the limits.
        ResourceError: no room, or a bundle is at the output already.
    """
    for named in (request.formats, request.draft_formats):
        if named is not None:
            parse_formats(named)  # before anything is read
    with BundleWriter(request.output, force=request.force) as writer:
        output = writer.destination  # checked now, not after the measurements
    tasks = [] if request.tasks is None else resolve_tasks(request.tasks, items=request.items)
    require_working(tasks)
    limit = QualityLimit(request.limits.perplexity_increase, request.texts)
    pair = open_pair(
        ExportOptions(
            request.target,
            request.draft,
            capacity=request.capacity,
            force=request.force,
            limit=limit,
        )
    )
    target, draft = pair.checkpoints["target"], pair.checkpoints.get("draft")
    if draft is None and request.draft_formats is not None:
        raise UsageError("--draft-formats needs a draft", hint="name one with --draft")
    formats = choose_formats("target", target, request.formats)
    drafts = Formats([], {})
    if draft is not None:
        drafts = choose_formats("draft", draft, request.draft_formats)
    count = request.text_tokens or token_count(target.parameters, 1)
    windows = cut_windows(target, limit, pair.vocabulary.size, count, min(WINDOW, pair.capacity))
    facts: dict[str, Any] = {
        "data": {
            "texts": "default" if request.texts is None else request.texts.name,
            "scored_tokens": sum(len(window) - 1 for window in windows),
            "tasks": request.tasks,
            "items": len(tasks),
        },
        "environment": machine_facts(),
    }
    folder = output.with_name(f"{output.name}.work")
    with (
        work_folder(folder, _identity(pair, windows, tasks)) as work,
        Steps(0, lines=True) as steps,
    ):
        for role, each in (("target", formats), ("draft", drafts)):
            for weights, reason in each.skipped.items():
                steps.note(f"the {role} is not tried in {weights}: {reason}")
        trial = Trial(pair, windows, tasks, request.limits, work, steps)
        facts = {**trial.measure(formats, drafts), **facts}
        trial.write(output, facts)
        work.remove()
    return facts


def _identity(pair: Pair, windows: list[list[int]], tasks: list[Task]) -> dict[str, Any]:
    """Return all that the finished parts of a job depend on, beside the formats and the limits."""
    draft = pair.checkpoints.get("draft")
    return {
        "target": _hash(pair.checkpoints["target"]),
        "draft": None if draft is None else _hash(draft),
        "capacity": pair.capacity,
        "text": digest(repr(windows)),
        "tasks": digest(repr([asdict(task) for task in tasks])),
        "versions": package_versions(),
        "machine": machine_facts(),
    }


def _hash(checkpoint: Checkpoint) -> str:
    """Return what identifies the files of a checkpoint."""
    files: set[Path] = set(checkpoint.weight_files)
    if checkpoint.gguf_file is None:
        files |= {
            file for file in checkpoint.folder.iterdir() if file.suffix in (".json", ".jinja")
        }
    return digest(repr([(file.name, sha256_of(file)) for file in sorted(files)]))
