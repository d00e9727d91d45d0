"""The chat page in a headless Chromium: whole conversations, stopping, settings, hostile text."""

from __future__ import annotations

import os
from pathlib import Path

import httpx2 as httpx
import pytest
from browser import opened

from cospec.runtime.serve.chat_page import read_chat_page
from cospec.runtime.trace.page import render

QUESTION = "What is 625 times 4?"
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True}
PICTURES = os.environ.get("COSPEC_SCREENSHOTS")
"""A folder for screenshots to look at; none are made without it."""


@pytest.fixture(scope="module")
def paired(serving, collab):
    with serving(sessions=[collab.new_session()]) as running:
        yield running


def ask(tab, text):
    answered = tab.locator(".turn .facts, .turn .wrong").count()
    tab.fill("#said", text)
    tab.press("#said", "Enter")
    tab.wait_for_function(
        "n => document.querySelectorAll('.turn .facts, .turn .wrong').length > n", arg=answered
    )
    tab.wait_for_selector("#send:not([hidden])")


def last_text(tab):
    return tab.locator(".turn .text").last.text_content()


def picture(tab, name):
    if PICTURES:
        tab.screenshot(path=Path(PICTURES) / f"{name}.png")


@pytest.mark.parametrize(("name", "options"), [("desktop", {}), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_in_collab_shows_who_chose_each_token(paired, collab, name, options, scheme):
    first = [{"role": "user", "content": QUESTION}]
    own = collab.generate(first, mode="collab")
    assert "draft" in own.provenance
    with opened(f"{paired.root}/", color_scheme=scheme, **options) as tab:
        tab.wait_for_function("document.getElementById('model').textContent === 'tiny'")
        if name == "phone":
            assert not tab.is_visible("#mode"), "the settings are closed on a phone"
            tab.click("summary")
        tab.select_option("#mode", "collab")
        assert tab.is_visible("#threshold")
        if name == "phone":
            tab.click("summary")
        ask(tab, QUESTION)
        assert last_text(tab) == own.text
        kept = tab.locator(".turn .draft").all_text_contents()
        assert "".join(kept), "the kept draft tokens are marked"
        line = tab.locator(".facts").last.text_content()
        assert "incomplete" not in line
        assert all(
            word in line for word in ("tokens/s", "% accepted", "first token after", "Trace")
        )
        ask(tab, "What is 2 + 2?")
        turns = [*first, {"role": "assistant", "content": own.text}]
        turns.append({"role": "user", "content": "What is 2 + 2?"})
        assert last_text(tab) == collab.generate(turns, mode="collab").text
        width = tab.evaluate("document.documentElement.scrollWidth")
        assert width <= tab.viewport_size["width"], "nothing is cut off at the side"
        picture(tab, f"{name}-{scheme}")


def test_the_trace_is_one_click_away_and_works(paired):
    with opened(f"{paired.root}/") as tab:
        ask(tab, QUESTION)
        with tab.context.expect_page() as found:
            tab.click("text=Trace")
        trace = found.value
        trace.wait_for_selector(".token")
        assert trace.title() == "CoSpec trace"
        assert trace.locator(".token").count() > 3
        picture(trace, "trace")


def test_settings_reach_the_server(paired, collab):
    with opened(f"{paired.root}/") as tab:
        tab.fill("#max_tokens", "4")
        tab.fill("#temperature", "1")
        tab.fill("#seed", "7")
        tab.select_option("#length", "2")
        ask(tab, QUESTION)
        messages = [{"role": "user", "content": QUESTION}]
        own = collab.generate(messages, max_tokens=4, temperature=1.0, seed=7, num_draft_tokens=2)
        assert last_text(tab) == own.text
        assert "incomplete" in tab.locator(".facts").last.text_content()
        tab.click("#clear")
        assert tab.locator(".turn").count() == 0
        tab.fill("#seed", "")
        tab.fill("#temperature", "0")
        tab.fill("#max_tokens", "")
        whole = collab.generate(messages, num_draft_tokens=2).text
        tab.fill("#stop", whole[6:9])
        ask(tab, QUESTION)
        assert last_text(tab) == whole[: whole.index(whole[6:9])]


def test_a_schema_is_followed_and_a_wrong_one_is_an_error(paired):
    pytest.importorskip("llguidance")
    with opened(f"{paired.root}/") as tab:
        tab.wait_for_selector("#schema")
        tab.fill("#schema", '{"enum": ["yes", "no"]}')
        ask(tab, QUESTION)
        assert last_text(tab) in ('"yes"', '"no"')
        tab.fill("#schema", "{")
        ask(tab, QUESTION)
        assert tab.locator(".wrong").count() == 1


def test_an_answer_is_stopped_in_the_middle(serving, gated):
    gated.permits.release(4)
    with serving(sessions=[gated]) as served, opened(f"{served.root}/") as tab:
        tab.fill("#said", QUESTION)
        tab.press("#said", "Enter")
        tab.wait_for_selector(".turn .text span")
        tab.click("#halt")
        gated.permits.release(10_000)
        tab.wait_for_selector("text=stopped")
        assert tab.is_visible("#send")


HOSTILE = "<img src=x onerror=alert(1)><script>document.title='x'</script>&lt;b&gt;"


def test_text_that_contains_markup_is_text(paired):
    with opened(f"{paired.root}/") as tab:
        tab.fill("#max_tokens", "3")
        ask(tab, HOSTILE)
        assert tab.locator(".turn .text").first.text_content() == HOSTILE
        # An answer of the model, in all forms in which it may come.
        tab.evaluate(
            """hostile => {
                const box = turn('Model', '');
                write(box, {delta: {content: hostile}, details: [{text: hostile, by: hostile}]});
                write(box, {delta: {content: hostile, reasoning_content: hostile}});
            }""",
            HOSTILE,
        )
        assert tab.locator(".turn img, .turn script").count() == 0
        assert tab.title() == "CoSpec chat"
        assert last_text(tab) == HOSTILE * 2


def test_the_key_is_asked_for(serving):
    with serving(api_keys=("s3cret",)) as closed:
        page = httpx.get(f"{closed.root}/")
        assert page.status_code == 200
        assert "s3cret" not in page.text
        answer = httpx.get(f"{closed.root}/v1/models")
        assert answer.status_code == 401


def test_the_page_can_be_left_out(serving):
    with serving(page=False) as without:
        assert httpx.get(f"{without.root}/").status_code == 404


def test_the_policy_allows_the_pages_own_scripts_only(served):
    page, headers = read_chat_page()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in page.replace("http-equiv", "")
    assert httpx.get(f"{served.root}/").headers["Content-Security-Policy"] == policy
    own = (
        render([]).split('content="')[1].split('"')[0]
    )  # a trace that the page opens inherits both
    for part in (part for part in own.split("'") if part.startswith("sha256-")):
        assert part in policy
