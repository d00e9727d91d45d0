"""From an fp32 bundle to the fastest of its weight formats that is good enough.

Every format is converted and measured against the source on calibration data. The target's format must
keep within the limits. The draft's cannot change what `strict` puts out, so only its speed counts: a
worse draft is accepted less often. Of the combinations that are left, the fastest on this CPU is
written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from ...errors import UsageError
from ...runtime.bundle.writer import BundleWriter
from ..tasks.resolve import resolve_tasks
from .candidates import Trial
from .converted_bundle import open_source, write_converted
from .request import WeightsRequest

SCRATCH = "candidates"
"""Folder in the staging folder of the output: bundles of all formats, gone before the sealing."""


def choose_weights(request: WeightsRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Convert, measure, choose and write; return what the new bundle's certificate says of it.

    Args:
        request: what is wanted.
        say: told what is being done.

    Raises:
        UsageError: data or a bundle that cannot be used.
        BundleError: a damaged source.
        GateError: no format keeps within the limits, or not the one that was asked for.
        ResourceError: no room on the disk or in memory, or a bundle is at the output already.
    """
    source = open_source(request.bundle, request.output)
    if request.draft_format is not None and source.manifest.models.draft is None:
        raise UsageError("--draft-format: this bundle has no draft")
    tasks = [] if request.tasks is None else resolve_tasks(request.tasks, items=request.items)
    with BundleWriter(request.output, force=request.force) as writer:
        scratch = writer.path(SCRATCH)
        trial = Trial(source, request, tasks, scratch, say)
        facts = trial.measure()
        chosen = facts["chosen"]
        say(f"writing {_name(chosen['target'], chosen['draft'])}")
        write_converted(
            source,
            writer,
            chosen["target"],
            chosen["draft"] or "fp32",
            facts=facts,
            reduce_range=facts["environment"]["products_saturate"],
            graph_of=trial.graph,
            before_commit=lambda: shutil.rmtree(scratch),
        )
    return facts


def _name(target: str, draft: str | None) -> str:
    return target if draft is None else f"{target} with a draft in {draft}"
