"""Traces of short generations, as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cospec.runtime.arbitration.protocol import Arbiter, Block
from cospec.runtime.arbitration.referee import Caps, Referee
from cospec.runtime.decoding.completion import Completion
from cospec.runtime.decoding.session import Session
from cospec.runtime.trace.record import Trace

PROMPT = "the block of 42"


def traced(session: Session, **options: Any) -> tuple[dict[str, Any], Completion]:
    trace = Trace(session)
    options = {"max_tokens": 24, **options}
    completion = session.generate(PROMPT, observer=trace, **options)
    return trace.to_json(completion), completion


def threshold_between(session: Session) -> float:
    """A threshold with scores on both sides of it."""
    data, _ = traced(session, mode="collab", threshold=0.999, max_tokens=40)
    scores = [each["score"] for each in positions(data) if each["score"] is not None]
    return float(np.median(scores))


def positions(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [position for each in data["rounds"] for position in each["positions"]]


def judged(
    session: Session,
    threshold: float = 0.0,
    protected: frozenset[int] = frozenset(),
    caps: Caps | None = None,
    arbiter: Arbiter | None = None,
) -> tuple[dict[str, Any], Completion]:
    """A trace of a generation with a referee of the test's own."""
    arbiter = arbiter or session.arbiter
    assert arbiter is not None
    referee = Referee(arbiter, threshold, protected, caps or Caps())
    trace = Trace(session)
    plan = session.plan(PROMPT, mode="collab", max_tokens=40, num_draft_tokens=6, observer=trace)
    completion = session.run(replace(plan, referee=referee)).completion()
    return trace.to_json(completion), completion


class Broken:
    """An arbiter whose scores are no numbers."""

    target_outputs: tuple[str, ...] = ()
    draft_outputs: tuple[str, ...] = ()

    def score(self, block: Block) -> Any:
        return np.full(len(block.drafted), np.nan, dtype=np.float32)


def differ(position: dict[str, Any]) -> bool:
    return position["draft"] is not None and position["draft"]["id"] != position["target"]["id"]
