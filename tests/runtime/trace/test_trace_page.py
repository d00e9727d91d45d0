"""The page of a trace, opened in a browser."""

from __future__ import annotations

import json
import math
import re

import pytest
from browser import opened
from click.testing import CliRunner
from traces import PROMPT, Broken, differ, judged, positions, threshold_between, traced

from cospec.errors import ResourceError
from cospec.runtime.arbitration.referee import Caps
from cospec.runtime.cli.run import main
from cospec.runtime.trace.page import render, write_page
from cospec.runtime.trace.record import Trace

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028&lt;"


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
