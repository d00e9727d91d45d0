"""Labels from worked solutions: at a mismatch on the way, which model would have followed the solution.

A branch costs an answer, and most branches change nothing. Reading a solution costs two prompts, and
most mismatches in it say something, because the answer so far is right. No model wrote the solution,
so a policy can learn from it to beat the target. It cannot tell a wording that would have been as
good; how much that matters is what branches show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.arbitration.protocol import Block
from ...runtime.engines.prefill import prefill
from ...runtime.engines.protocol import Decoder, StepOutput
from ..tasks.item import Task
from .rollout_jobs import branch
from .rollouts import RolloutRunner

WIDTH = 16
"""Tokens of a solution in one pass, whose logits are all held at once."""


@dataclass(frozen=True)
class SolutionJob:
    """One task whose solution is read."""

    task: Task


@dataclass(frozen=True)
class Place:
    """A mismatch on the way along a solution.

    Attributes:
        index: of the token in the solution.
        position, mismatches, run: of the drafted token; see `Block`.
    """

    index: int
    position: int
    mismatches: int
    run: int


def read_solution(runner: RolloutRunner, job: SolutionJob) -> dict[str, Any]:
    """Return `branches` as `run_branches` does, one for each mismatch along the task's solution.

    `draft` and `target` say whose token is the solution's.
    """
    session, caches, arbiter = runner.session, runner.session.caches, runner.arbiter
    assert job.task.solution is not None, "only tasks with a solution get here"
    assert caches.draft is not None, "an arbiter has a draft"
    prompt = session.encode(job.task.prompt)
    room = max(1, caches.target.capacity - len(prompt))
    solution = session.codec.encode_rendered(job.task.solution)[:room]
    session.forget()
    chunk = session.manifest.generation.prefill_chunk
    draft = _rows(caches.draft, arbiter.draft_outputs, prompt, solution, chunk)
    target = _rows(caches.target, (*arbiter.target_outputs, "logits"), prompt, solution, chunk)
    session.forget()
    drafted, chosen = draft["token"], target["token"]
    places = list(along(drafted.tolist(), chosen.tolist(), solution, runner.num_draft_tokens))
    if not places:
        return {"branches": []}
    at = np.array([place.index for place in places])
    logits = target.pop("logits")[at, drafted[at]]
    target["next_input_logprob"] = target["logsumexp"].copy()
    target["next_input_logprob"][at] = logits - target["logsumexp"][at]
    counts = {
        name: np.array([getattr(place, name) for place in places], dtype=np.float32)
        for name in ("position", "mismatches", "run")
    }
    block = Block(
        drafted=drafted[at],
        matches=np.zeros(len(at), dtype=np.bool_),
        draft=StepOutput(**draft).restricted(at),
        target=StepOutput(**target).restricted(at),
        **counts,
    )
    branches = [
        branch(row, ours, theirs, draft=ours == solution[i], target=theirs == solution[i])
        for i, ours, theirs, row in zip(
            at, drafted[at].tolist(), chosen[at].tolist(), arbiter.features_of(block), strict=True
        )
    ]
    return {"branches": branches}


def along(
    drafted: Sequence[int], chosen: Sequence[int], solution: Sequence[int], k: int
) -> Iterator[Place]:
    """Yield the mismatches on the way, in blocks of `k` tokens.

    A drafted token that is the solution's is kept, and every other one ends its block. Unlike in the
    loop no token is a bonus, which would hide a mismatch.
    """
    position = mismatches = run = 0
    for i, (ours, theirs, wanted) in enumerate(zip(drafted, chosen, solution, strict=True)):
        if ours == theirs:
            run = 0
        else:
            yield Place(i, position, mismatches, run)
            mismatches, run = mismatches + 1, run + 1
        position += 1
        if ours != wanted or position == k:
            position = mismatches = run = 0


def _rows(
    decoder: Decoder,
    outputs: tuple[str, ...],
    prompt: Sequence[int],
    solution: Sequence[int],
    chunk: int,
) -> dict[str, NDArray[Any]]:
    """Return a model's view before each token of the solution: output name -> [n, ...]."""
    before = [*prompt, *solution[:-1]]
    prefill(decoder, prompt, chunk, ahead=chunk - 1)  # all but the last token
    decoder.select(outputs)
    parts: dict[str, list[NDArray[Any]]] = {}
    while decoder.length < len(before):
        rows = decoder.step(before[decoder.length : decoder.length + WIDTH])
        for each in fields(rows):
            value = getattr(rows, each.name)
            if value is not None:
                parts.setdefault(each.name, []).append(value.copy())
    return {name: np.concatenate(values) for name, values in parts.items()}
