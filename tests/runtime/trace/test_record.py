"""The trace of a generation: what it records, and the page as a browser shows it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from traces import PROMPT, Broken, differ, judged, positions, threshold_between, traced

import cospec
from cospec.errors import UsageError
from cospec.runtime.arbitration.referee import Caps
from cospec.runtime.decoding.session import Session
from cospec.runtime.engines.onnxruntime import OrtEngine
from cospec.runtime.engines.protocol import StepOutput
from cospec.runtime.trace.record import Probability, Trace, probability


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "collab", "threshold": 0.5},
        {"mode": "collab", "threshold": 0},
        {"num_draft_tokens": 0},
        {"sampling": cospec.SamplingParams(temperature=0.8, seed=3)},
        {"max_tokens": 90, "overflow": "slide"},
    ],
)
def test_it_tells_of_every_token_and_changes_none(session, options):
    data, completion = traced(session, **options)
    plain = session.generate(PROMPT, **{"max_tokens": 24, **options})
    assert (completion.tokens, completion.provenance) == (plain.tokens, plain.provenance)
    shown = positions(data)
    assert [position["id"] for position in shown] == completion.tokens
    assert [position["who"] for position in shown] == completion.provenance
    assert "".join(position["text"] for position in shown) == completion.text
    assert len(data["rounds"]) == completion.stats.num_target_passes
    assert sum(len(each["drafted"]) for each in data["rounds"]) == completion.stats.num_draft_tokens
    assert sum(each["accepted"] for each in data["rounds"]) >= completion.stats.num_accepted_tokens
    ends = [each["end"] for each in data["rounds"]]
    assert ends == sorted(ends)
    assert ends[0] > 0
    json.dumps(data, allow_nan=False)


def test_candidates_and_probabilities_are_those_of_the_models(session):
    data, completion = traced(session)
    tokens = session.encode(PROMPT)
    target = engine_of(session, 0).decoder(("logits",))
    draft = engine_of(session, 1).decoder(("logits",))
    disagreements = 0
    for position in positions(data):
        rows = {"target": softmax(target, tokens), "draft": softmax(draft, tokens)}
        assert position["target"]["id"] == int(rows["target"].argmax())
        if position["draft"] is not None:
            assert position["draft"]["id"] == int(rows["draft"].argmax())
            disagreements += position["draft"]["id"] != position["target"]["id"]
        for candidate in (position["draft"], position["target"]):
            for model in ("target", "draft"):
                said = None if candidate is None else candidate[model]
                if said is None:
                    continue
                exact = rows[model][candidate["id"]]
                if said["bound"]:
                    assert exact <= said["value"] * (1 + 1e-4)
                else:
                    assert said["value"] == pytest.approx(exact, rel=1e-3, abs=1e-6)
        tokens = [*tokens, position["id"]]
    assert completion.tokens == tokens[len(session.encode(PROMPT)) :]
    assert disagreements > 0


def test_a_token_that_is_none_of_the_best_has_a_bound_for_a_probability():
    logits = np.array([[3.0, 2.0, 1.0, 0.0]], dtype=np.float32)
    total = np.log(np.exp(logits).sum(axis=1)).astype(np.float32)
    best = StepOutput(
        token=np.array([0]),
        top_ids=np.array([[0, 1]]),
        top_values=logits[:, :2],
        logsumexp=total,
    )
    exact = np.exp(logits[0] - total)
    assert probability(best, 0, 1) == Probability(pytest.approx(exact[1]))
    assert probability(best, 0, 3) == Probability(pytest.approx(exact[1]), bound=True)
    whole = replace(best, logits=logits)
    assert probability(whole, 0, 3) == Probability(pytest.approx(exact[3]))


def engine_of(session: Session, which: int) -> OrtEngine:
    engine = session.engines[which]
    assert isinstance(engine, OrtEngine)
    return engine


def softmax(decoder: Any, tokens: list[int]) -> Any:
    decoder.truncate(0)
    row = decoder.step(tokens).logits[-1].astype(np.float64)
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def test_scores_stand_where_the_arbiter_was_asked_and_explain_the_decision(session):
    threshold = threshold_between(session)
    data, _ = traced(session, mode="collab", threshold=threshold, max_tokens=40)
    assert data["threshold"] == threshold
    asked = [each for each in positions(data) if each["score"] is not None]
    for position in asked:
        assert position["draft"]["id"] != position["target"]["id"]
        assert 0 <= position["score"] <= 1
        if position["who"] == "draft":
            assert position["score"] > threshold
    kept = [each for each in positions(data) if each["who"] == "draft"]
    assert kept
    assert all(each in asked for each in kept)
    assert any(each["who"] == "target" for each in asked)
    assert {each["decided_by"] for each in asked} <= {
        "score",
        "in_a_row",
        "per_block",
        "repetition",
    }
    for position in asked:
        if position["decided_by"] == "score":
            assert (position["score"] > threshold) == (position["who"] == "draft")
    strict, _ = traced(session)
    assert strict["threshold"] is None
    assert strict["caps"] is None
    for position in positions(strict):
        assert position["score"] is position["decided_by"] is None


@pytest.mark.parametrize(
    ("settings", "ground"),
    [
        ({"caps": Caps(in_a_row=1)}, "in_a_row"),
        ({"caps": Caps(in_a_row=9, per_block=1)}, "per_block"),
        ({"caps": Caps(in_a_row=9, per_block=9, repeat_ngram=1)}, "repetition"),
        ({"protected": frozenset(range(1, 300))}, "protected"),
        ({"threshold": 1.0}, "score"),
    ],
)
def test_what_decided_is_recorded_at_every_mismatch(session, settings, ground):
    """Every mismatch that was reached has a ground, and the grounds agree with the statistics."""
    data, completion = judged(session, **settings)
    mismatches = [each for each in positions(data) if differ(each)]
    assert len(mismatches) == completion.stats.num_mismatches > 0
    grounds = Counter(each["decided_by"] for each in mismatches if each["who"] == "target")
    assert grounds[ground] > 0
    capped = {cap: grounds[cap] for cap in completion.stats.num_capped}
    assert capped == completion.stats.num_capped
    assert all(each["decided_by"] == "score" for each in mismatches if each["who"] == "draft")
    assert all(each["decided_by"] is None for each in positions(data) if not differ(each))
    assert data["caps"] == asdict(settings.get("caps", Caps()))


def test_a_score_that_is_not_a_number_is_valid_json(session):
    data, _ = judged(session, threshold=0.5, arbiter=Broken())
    refused = [each for each in positions(data) if differ(each)]
    assert refused
    assert all(each["score"] is None and each["who"] == "target" for each in refused)
    json.dumps(data, allow_nan=False)


def test_a_drafter_without_a_model_has_no_probabilities(session, tiny_bundle):
    lookup = cospec.load(tiny_bundle.root, drafter="ngram")
    trace = Trace(lookup)
    completion = lookup.generate("a b c d a b c d a b", max_tokens=9, observer=trace)
    data = trace.to_json(completion)
    assert completion.stats.num_draft_tokens > 0
    drafted = [each["draft"] for each in positions(data) if each["draft"] is not None]
    assert drafted
    assert all(candidate["draft"] is None for candidate in drafted)


def test_a_stop_text_cuts_the_last_round(session):
    _, whole = traced(session)
    stop = whole.text[5:7]
    data, completion = traced(session, sampling=cospec.SamplingParams(stop=(stop,)))
    assert completion.finish_reason == "stop"
    assert [position["id"] for position in positions(data)] == completion.tokens


def test_a_trace_of_something_else_is_refused(session):
    trace = Trace(session)
    session.generate(PROMPT, max_tokens=4, observer=trace)
    with pytest.raises(UsageError, match="another generation"):
        trace.to_json(session.generate(PROMPT, max_tokens=9))
