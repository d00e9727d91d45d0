"""The declaration of the generation options: one line adds one everywhere."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import cospec
from cospec import Chat, GenerationOptions, SamplingParams, Session
from cospec.runtime.cli.run import main
from cospec.runtime.sampling.declaration import options_of

ROOT = Path(cospec.__file__).resolve().parent
LINE = '    loudness: int = option(7, "How loud the output is.", low=0, high=9)\n'
USES = """
import json, sys
from click.testing import CliRunner
import cospec
from cospec.runtime.cli.run import main

bundle, folder = sys.argv[1:]
seen = []
import cospec.runtime.decoding.session as module
plan_generation = module.plan_generation
def recorded(tokens, options, *rest, **named):
    seen.append(options.loudness)
    return plan_generation(tokens, options, *rest, **named)
module.plan_generation = recorded

session = cospec.load(bundle)
assert session.plan("x").options.loudness == 7
session.generate("x", max_tokens=1, loudness=1)
list(session.stream("x", max_tokens=1, loudness=2))
list(cospec.Chat(session).send("x", max_tokens=1, loudness=3))
help_text = CliRunner().invoke(main, ["--help"]).output
assert "--loudness N" in help_text and "How loud the output is." in help_text, help_text
run = ["--engine-dir", bundle, "--max-tokens", "1"]
assert CliRunner().invoke(main, [*run, "--loudness", "4", "x"]).exit_code == 0
refused = CliRunner().invoke(main, [*run, "--loudness", "10", "x"])
assert "loudness is 10, but must be from 0 to 9" in refused.stderr, refused.output
lines = [{"prompt": "x", "loudness": 5}, {"prompt": "y"}]
open(folder + "/in.jsonl", "w").write("".join(json.dumps(line) + "\\n" for line in lines))
files = ["--batch", folder + "/in.jsonl", "--output", folder + "/out.jsonl"]
done = CliRunner().invoke(main, [*run, "--loudness", "6", *files])
assert done.exit_code == 0, done.output
from cospec.runtime.serve.requests import Defaults, chat_request, completion_request
body = {"prompt": "x", "loudness": 8}
request = completion_request(json.dumps(body).encode(), Defaults("tiny"))
session.plan(request.prompts[0], **vars(request.options))
body = {"messages": [{"role": "user", "content": "x"}], "loudness": 9}
request = chat_request(json.dumps(body).encode(), Defaults("tiny"))
session.plan(request.prompts[0], **vars(request.options))
print(json.dumps(sorted(set(seen))))
"""


@pytest.mark.parametrize("declaration", ["decoding/options.py", "sampling/params.py"])
def test_one_new_line_reaches_library_chat_command_line_batch_and_http(
    tiny_bundle, tmp_path, declaration
):
    package = tmp_path / "changed" / "cospec"
    package.mkdir(parents=True)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / name, package / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "runtime", package / "runtime", ignore=ignored)
    file = package / "runtime" / declaration
    text = file.read_text(encoding="utf-8")
    before = "    overflow: Overflow" if "overflow:" in text else "    min_tokens: int"
    assert text.count(before) == 1
    file.write_text(text.replace(before, LINE + before), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", USES, str(tiny_bundle.root), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=300,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_every_entry_takes_the_declared_options_and_no_others():
    declared = set(options_of(GenerationOptions))
    assert declared > set(options_of(SamplingParams))
    flags = {parameter.name for parameter in main.params if isinstance(parameter, click.Option)}
    assert declared <= flags
    for method in (Session.generate, Session.stream, Session.plan, Chat.send):
        own, subject, *keywords = inspect.signature(method).parameters.values()
        assert (own.name, subject.name) in [("self", "prompt"), ("self", "text")]
        names = {each.name for each in keywords}
        assert names == declared | {"sampling", "arbiter", "drafter", "observer"}
        assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in keywords)


@pytest.fixture(scope="module")
def session(tiny_bundle: Any) -> Session:
    return cospec.load(tiny_bundle.root)


def test_options_by_keyword_are_those_of_sampling_params(session):
    params = {"temperature": 0.9, "top_k": 9, "seed": 4, "stop": ("e",)}
    found = session.generate("the block", max_tokens=12, **params)
    same = session.generate(prompt="the block", max_tokens=12, sampling=SamplingParams(**params))
    assert (found.tokens, found.text) == (same.tokens, same.text)
    assert found.seed == 4


def test_a_session_has_defaults_that_a_call_replaces(tiny_bundle):
    session = cospec.load(tiny_bundle.root)
    session.defaults = session.defaults.updated({"temperature": 1.0, "seed": 5, "max_tokens": 3})
    assert session.plan("x").options.seed == 5
    assert len(Chat(session).send("x").completion().tokens) <= 3
    plan = session.plan("x", temperature=0.0, max_tokens=2)
    assert (plan.sampler, plan.limits.max_tokens) == (None, 2)
    assert session.plan("x", sampling=SamplingParams(min_p=0.5)).options.temperature == 0
    assert session.continue_tokens([5, 6], max_tokens=2).seed is None, "measuring has no defaults"


def test_a_call_that_forgets_the_prompt_or_passes_options_by_position(session):
    with pytest.raises(TypeError, match=r"generate\(\) takes prompt and options by keyword"):
        session.generate(max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="by keyword"):
        session.generate("x", 0.5)
