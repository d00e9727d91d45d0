"""The trace of a generation: what it records, and the page as a browser shows it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from arbiters import bundle_with_arbiter, untrained_network
from browser import opened
from click.testing import CliRunner

import cospec
from cospec.calibration.arbiter.network_graph import export_arbiter
from cospec.errors import ResourceError, UsageError
from cospec.runtime.arbitration.protocol import Arbiter, Block
from cospec.runtime.arbitration.referee import Caps, Referee
from cospec.runtime.cli.run import main
from cospec.runtime.decoding.completion import Completion
from cospec.runtime.decoding.session import Session
from cospec.runtime.engines.onnxruntime import OrtEngine
from cospec.runtime.engines.protocol import StepOutput
from cospec.runtime.trace.page import render, write_page
from cospec.runtime.trace.record import Probability, Trace, probability

PROMPT = "the block of 42"
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028&lt;"


@pytest.fixture(scope="module")
def session(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A pair that disagrees about half the time, with an untrained arbiter."""
    folder = tmp_path_factory.mktemp("arbiter")
    export_arbiter(untrained_network(tiny_bundle.root), folder / "model.onnx")
    return cospec.load(
        bundle_with_arbiter(tiny_bundle.root, folder / "model.onnx", folder / "tiny")
    )


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


def judged(
    session: Session,
    threshold: float = 0.0,
    protected: frozenset[int] = frozenset(),
    caps: Caps | None = None,
    arbiter: Arbiter | None = None,
) -> tuple[dict[str, Any], Completion]:
    """A trace of a generation with a referee of the test's own."""
    referee = Referee(arbiter or session.arbiter, threshold, protected, caps or Caps())
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


def test_a_score_that_is_not_a_number_is_valid_json(session):
    data, _ = judged(session, threshold=0.5, arbiter=Broken())
    refused = [each for each in positions(data) if differ(each)]
    assert refused
    assert all(each["score"] is None and each["who"] == "target" for each in refused)
    json.dumps(data, allow_nan=False)


def differ(position: dict[str, Any]) -> bool:
    return position["draft"] is not None and position["draft"]["id"] != position["target"]["id"]


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


def test_the_page_is_written_whole_or_not_at_all(session, tmp_path):
    trace = Trace(session)
    completion = session.generate(PROMPT, max_tokens=4, observer=trace)
    with pytest.raises(ResourceError, match="cannot be written"):
        trace.write(tmp_path / "no folder" / "trace.html", completion)
    trace.write(tmp_path / "trace.html", completion)
    assert [each.name for each in tmp_path.iterdir()] == ["trace.html"]


def test_no_text_can_leave_the_data(session):
    data, _ = traced(session)
    data["prompt"] = data["said"] = data["rounds"][0]["drafted"][0] = HOSTILE
    page = render([data])
    embedded = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert [json.loads(text) for text in embedded] == [{"turns": [data]}]
    assert HOSTILE not in page
    assert page.count("<script") == 2
    loads = re.findall(r"(?:src|href|url)\s*[=(]", page.replace(embedded[0], ""))
    assert loads == []
    assert "default-src 'none'" in page


def test_the_command_writes_it_beside_its_output(tiny_bundle, tmp_path):
    page = tmp_path / "trace.html"
    arguments = ["--engine-dir", str(tiny_bundle.root), "--max-tokens", "6", "--trace", str(page)]
    runner = CliRunner()
    result = runner.invoke(main, [*arguments, "--json", PROMPT])
    assert result.exit_code == 0, result.output
    text = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert text is not None
    (found,) = json.loads(text[1])["turns"]
    completion = json.loads(result.stdout)
    assert [position["id"] for position in positions(found)] == completion["tokens"]
    bad = runner.invoke(main, [*arguments[:-1], str(tmp_path / "x" / "y.html"), PROMPT])
    assert bad.exit_code == 7


def test_a_browser_shows_it(session, tmp_path):
    threshold = threshold_between(session)
    trace = Trace(session)
    completion = session.generate(
        PROMPT, max_tokens=40, mode="collab", threshold=threshold, observer=trace
    )
    trace.write(tmp_path / "trace.html", completion)
    with opened((tmp_path / "trace.html").as_uri()) as page:
        tokens = page.locator(".token")
        assert tokens.count() == len(completion.tokens)
        assert page.locator(".round").count() == completion.stats.num_target_passes
        assert page.locator("rect.bar").count() == completion.stats.num_target_passes
        for who in ("agreed", "draft", "target", "bonus"):
            assert page.locator(f".token.{who}").count() == completion.provenance.count(who)
        details = page.locator("#details")
        kept = completion.provenance.index("draft")
        tokens.nth(kept).hover()
        said = details.inner_text()
        assert f"token {kept + 1} of {len(completion.tokens)}" in said
        for words in (
            "draft wants, stands",
            "target wants",
            f"of {threshold}: above the threshold",
        ):
            assert words in said
        tokens.first.focus()
        page.keyboard.press("ArrowRight")
        assert f"token 2 of {len(completion.tokens)}" in details.inner_text()
        page.keyboard.press("ArrowDown")
        assert f"Round\n2 of {len(trace.rounds)}" in details.inner_text()
        page.keyboard.press("End")
        last = f"token {len(completion.tokens)} of {len(completion.tokens)}"
        assert last in details.inner_text()
        assert page.evaluate("document.activeElement.getAttribute('role')") == "option"
        colours = {}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            style = "(e) => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
            colours[scheme] = tokens.nth(kept).evaluate(style)
        assert colours["light"] != colours["dark"]
        assert all(contrast(*pair) >= 4.5 for pair in colours.values()), "WCAG AA"


def test_a_browser_says_what_decided(session, tmp_path):
    turns, hovered, expected = [traced(session)[0]], [("target", None)], ["strict mode"]
    for settings, ground, words in (
        ({"caps": Caps(in_a_row=1)}, "in_a_row", "1 draft tokens side by side were kept"),
        ({"caps": Caps(per_block=1)}, "per_block", "1 draft tokens of this block were kept"),
        ({"caps": Caps(repeat_ngram=1)}, "repetition", "stood within the last 64"),
        ({"protected": frozenset(range(1, 300))}, "protected", "only the target chooses"),
        ({"threshold": 0.999}, "score", "of 0.999: not above the threshold"),
        ({"threshold": 1.0}, "score", "a threshold of 1, which no score is above"),
        ({"threshold": 0.5, "arbiter": Broken()}, "score", "its score is not a number"),
    ):
        turns.append(judged(session, **settings)[0])
        hovered.append(("target", ground))
        expected.append(words)
    write_page(tmp_path / "trace.html", turns)
    with opened((tmp_path / "trace.html").as_uri()) as page:
        for turn, which, words in zip(turns, hovered, expected, strict=True):
            shown = [differ(each) and (each["who"], each["decided_by"]) for each in positions(turn)]
            tokens = page.locator(".turn").nth(turns.index(turn)).locator(".token")
            tokens.nth(shown.index(which)).hover()
            said = page.locator("#details").inner_text()
            assert words in said
            assert "the target's token stands" in said


def test_a_browser_shows_a_conversation(session, tmp_path):
    turns = [{"said": f"message {n}", **traced(session, max_tokens=9 + n)[0]} for n in (1, 2)]
    turns[1]["prompt"] = "the second prompt"
    write_page(tmp_path / "trace.html", turns)
    counts = [len(positions(turn)) for turn in turns]
    with opened((tmp_path / "trace.html").as_uri()) as page:
        assert page.locator(".token").count() == sum(counts)
        assert page.locator(".said").all_inner_texts() == ["message 1", "message 2"]
        assert page.locator("rect.bar").count() == sum(len(turn["rounds"]) for turn in turns)
        assert page.locator("line.border").count() == 1
        assert "2 turns" in page.locator("#facts").inner_text()
        page.locator(".token").first.hover()
        page.locator(".token").nth(counts[0]).hover()
        said = page.locator("#details").inner_text()
        assert f"token {counts[0] + 1} of {sum(counts)}" in said
        assert "Turn\n2 of 2, ended by length" in said
        assert f"Round\n1 of {len(turns[1]['rounds'])}" in said
        assert page.locator("#prompt").text_content() == "the second prompt"
        page.locator(".token").nth(counts[0]).focus()
        page.keyboard.press("ArrowUp")
        assert "Turn\n1 of 2" in page.locator("#details").inner_text()
    write_page(tmp_path / "trace.html", [])
    with opened((tmp_path / "trace.html").as_uri()) as page:
        assert page.locator("#chart").inner_text() == "There was no round."
        assert "0 turns" in page.locator("#facts").inner_text()


def contrast(*colours: str) -> float:
    """The contrast of two CSS colours `rgb(r, g, b)`, after WCAG 2."""
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    values = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return math.fsum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_browser_runs_nothing_that_a_model_wrote(session, tmp_path):
    data, _ = traced(session)
    data["prompt"] = data["said"] = HOSTILE
    for position in positions(data):
        position["text"] = position["target"]["text"] = HOSTILE
    write_page(tmp_path / "trace.html", [data])
    with opened((tmp_path / "trace.html").as_uri()) as page:
        assert page.title() == "CoSpec trace"
        assert page.locator("img").count() == 0
        assert page.locator(".token").first.inner_text() == HOSTILE
        assert page.locator("#prompt").text_content() == HOSTILE
        assert page.locator(".said").inner_text() == HOSTILE
