"""Every example runs on the tiny pair and prints what it promises."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cospec
from cospec.errors import PromptTooLongError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUESTIONS = ["Put 45 27 48 82 in order.", "Work out 21+35-55+61.", "Multiply 285 by 8."]


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=540,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def session(tiny_pair_bundle: Path) -> cospec.Session:
    return cospec.load(tiny_pair_bundle)


def answer(session: cospec.Session, question: str, **options: Any) -> cospec.Completion:
    return session.new_session().generate(
        [{"role": "user", "content": question}], **{"max_tokens": 64, **options}
    )


def test_every_example_is_numbered_listed_and_tested():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name[:3] for name in names] == [f"{i:02d}_" for i in range(1, len(names) + 1)]
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert listed == names
    tested = Path(__file__).read_text(encoding="utf-8")
    for name in ("05_custom_arbiter_rule.py", "06_custom_drafter.py"):
        imports = re.findall(
            r"^\s*(?:from|import) (cospec\S*)", (EXAMPLES / name).read_text(), re.M
        )
        assert imports == ["cospec"], "an extension needs nothing but the public names"
    for name in names:
        assert f'"{name}"' in tested
        assert "\nRun:  " in (EXAMPLES / name).read_text(encoding="utf-8"), "how to run it"


def test_minimal(session, tiny_pair_bundle):
    expected = answer(session, "Mia has 58 keys and Sam 55 more than Mia. How many in all?")
    lines = run("01_minimal.py", tiny_pair_bundle).splitlines()
    assert lines[0] == expected.text.strip()
    assert "Answer: 171" in lines[0], "58 and 113"
    assert lines[1] == f"ended by: {expected.finish_reason}"
    assert lines[3] == f"agreed: {expected.provenance.count('agreed')}"


def test_streaming_chat(session, tiny_pair_bundle):
    printed = run("02_streaming_chat.py", tiny_pair_bundle, QUESTIONS[1], QUESTIONS[0])
    turns = printed.split("> ")[1:]
    assert [turn.split("\n")[0] for turn in turns] == [*QUESTIONS[1::-1], "Work out 21+35-67+57."]
    assert turns[0].split("\n")[1] == answer(session, QUESTIONS[1]).text
    cached = [int(count) for count in re.findall(r"\[(\d+) of \d+ prompt tokens", printed)]
    assert cached[0] == 0
    assert cached[2] >= cached[1] > 0, "what was said before is not read again"


def test_sampling(tiny_pair_bundle):
    printed = run("03_sampling.py", tiny_pair_bundle)
    assert "different texts: 1" in printed
    assert "ended by: stop" in printed
    assert len(re.findall(r"-\d\.\d+  best: \(\(", printed)) == 4


def test_asyncio_web_handler(session, tiny_pair_bundle):
    starlette = pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    assert starlette.__version__
    module = imported("04_asyncio_web_handler.py")
    app = module.application(str(tiny_pair_bundle))

    async def main() -> list[tuple[int, str]]:
        return await asyncio.gather(*(post(app, question) for question in [*QUESTIONS, ""]))

    *answers, empty = asyncio.run(main())
    assert answers == [(200, answer(session, question).text) for question in QUESTIONS]
    assert empty[0] == 200, "an empty message is still a message to this template"
    refused = asyncio.run(post(app, "x" * 5000))
    assert refused[0] == 400
    assert "this bundle holds" in refused[1]


async def post(app: Any, body: str) -> tuple[int, str]:
    """Send one request to an ASGI application, as a server would; return status and body."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "POST",
        "path": "/ask",
        "raw_path": b"/ask",
        "query_string": b"",
        "headers": [],
    }
    waiting = asyncio.Event()
    messages = iter([{"type": "http.request", "body": body.encode(), "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(messages, None)
        if message is None:
            await waiting.wait()  # the client stays
        return message or {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    text = b"".join(each.get("body", b"") for each in sent).decode()
    return sent[0]["status"], text


def imported(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(name).stem[3:], EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_arbiter_rule(session, tiny_pair_bundle, tmp_path):
    page = tmp_path / "trace.html"
    printed = run("05_custom_arbiter_rule.py", tiny_pair_bundle, page)
    strict = answer(session, "What is 625 times 4?", max_tokens=96)
    assert f"strict: {strict.text.strip()}\n" in printed
    kept = re.search(r"kept (\d+) draft tokens at (\d+) mismatches", printed)
    assert kept is not None
    assert 0 < int(kept[1]) <= int(kept[2])
    assert page.read_text(encoding="utf-8").count('"who": "draft"') == int(kept[1])


def test_custom_drafter(tiny_pair_bundle):
    printed = run("06_custom_drafter.py", tiny_pair_bundle)
    assert "the same text: True" in printed
    alone, helped = map(int, re.findall(r"target passes: (\d+)", printed))
    assert helped < alone / 2


@pytest.mark.slow
def test_calibrate_on_own_data(tiny_pair_bundle, tmp_path):
    printed = run("07_calibrate_on_own_data.py", tiny_pair_bundle, tmp_path)
    assert re.search(r"^threshold: \d\.?\d*$", printed, re.MULTILINE)
    assert re.findall(r"^(\w+): right on \d+%$", printed, re.MULTILINE) == [
        "target",
        "strict",
        "draft",
        "collab",
    ]
    from cospec.runtime.bundle.reader import Bundle

    assert Bundle.open(tmp_path / "bundle").manifest.models.arbiter is not None
    assert Bundle.open(tiny_pair_bundle).manifest.models.arbiter is None, "a copy was calibrated"


class ScriptedSession:
    """Answers with given steps; records the prompts and which keys each schema allows."""

    def __init__(self, *steps: dict[str, str], fits: int = 99) -> None:
        self.steps = [json.dumps(step) for step in steps]
        self.fits = fits
        self.prompts: list[list[dict[str, str]]] = []
        self.allowed: list[list[list[str]]] = []

    def generate(self, prompt: Any, *, json_schema: Any, max_tokens: int) -> SimpleNamespace:
        if len(prompt) > self.fits:
            raise PromptTooLongError("too long")
        self.prompts.append(list(prompt))
        self.allowed.append([each["required"] for each in json_schema["anyOf"]])
        return SimpleNamespace(text=self.steps.pop(0), is_complete=True)


@pytest.fixture
def app() -> Any:
    spec = importlib.util.spec_from_file_location("app", EXAMPLES / "08_assistant.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_assistant_uses_its_tools_and_keeps_its_notes(app, tmp_path):
    notes = app.Notes(tmp_path / "notes.json")
    session = ScriptedSession(
        {"tool": "calculate", "expression": "12 * (30 - 4)"},
        {"tool": "add_note", "text": "312 eggs"},
        {"answer": "Noted."},
        {"tool": "list_notes"},
        {"answer": "312 eggs"},
    )
    assistant = app.Assistant(session, [app.calculate, app.now, notes.add_note, notes.list_notes])
    assert assistant.ask("How many eggs? Note it.") == "Noted."
    assert session.prompts[1][-1] == {"role": "user", "content": "Result: 312"}
    assert json.loads((tmp_path / "notes.json").read_text()) == ["312 eggs"]
    assert assistant.ask("What did I note?") == "312 eggs"
    keys = [["tool", "expression"], ["tool"], ["tool", "text"], ["tool"], ["answer"]]
    assert session.allowed[0] == keys


@pytest.mark.parametrize("bad", ["__import__('os')", "1 / 0", "2 ** 99", "open", "1 +", "'a'"])
def test_the_assistant_tells_the_model_what_went_wrong(app, bad):
    session = ScriptedSession({"tool": "calculate", "expression": bad}, {"answer": "Sorry."})
    assert app.Assistant(session, [app.calculate]).ask("?") == "Sorry."
    assert session.prompts[1][-1]["content"].startswith("Result: error: ")


def test_the_assistant_must_answer_in_the_end_and_forgets_what_does_not_fit(app):
    call = {"tool": "now"}
    session = ScriptedSession(*[call] * app.STEPS, {"answer": "Enough."}, fits=5)
    assert app.Assistant(session, [app.now]).ask("What time is it?") == "Enough."
    assert session.allowed[-1] == [["answer"]]
    assert len(session.prompts[-1]) == 5


def test_the_assistant_runs_on_a_bundle(tiny_pair_bundle, tmp_path):
    pytest.importorskip("llguidance")
    words = (tiny_pair_bundle, tmp_path / "notes.json", QUESTIONS[0])
    printed = run("08_assistant.py", *words).splitlines()
    assert printed
    assert all(line.startswith("  [") for line in printed[:-1]), "calls, and then the answer"
