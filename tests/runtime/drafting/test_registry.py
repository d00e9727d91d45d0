"""Drafters by name: ours, installed ones, and a user's class; and the page that shows how."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cospec
from cospec.errors import UsageError
from cospec.runtime.arbitration.baselines import AlwaysDraft
from cospec.runtime.cli.run import main
from cospec.runtime.drafting.protocol import DraftingContext, EvidenceDrafter, RollbackDrafter
from cospec.runtime.drafting.registry import find_drafter

PAGE = Path(cospec.__file__).resolve().parent / "docs" / "writing-a-drafter.md"
MODULE = """
class Constant:
    made = []
    def __init__(self, context):
        self.made.append(context)
    def propose(self, tokens, count):
        return [5] * count

class WithModel(Constant):
    uses_model = True

number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module on the path."""
    name = f"users_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_auto_is_the_draft_model_or_lookup():
    assert find_drafter("auto", has_draft=True).name == "model"
    assert find_drafter("auto", has_draft=False).name == "ngram"
    for name in ("model", "combined"):
        with pytest.raises(UsageError, match=f"no draft model, which the drafter '{name}' needs"):
            find_drafter(name, has_draft=False)


@pytest.mark.parametrize("name", ["ngram", "none"])
def test_a_drafter_needs_only_propose(name):
    drafter: Any = find_drafter(name, has_draft=False).make(DraftingContext(codec=None))
    assert list(drafter.propose([1, 2, 3, 1, 2], 1)) in ([3], [])
    assert not isinstance(drafter, RollbackDrafter | EvidenceDrafter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oracle", "unknown drafter 'oracle'"),
        ("nowhere:Class", "'nowhere:Class' cannot be imported: No module named 'nowhere'"),
        ("{module}:Missing", "cannot be imported: .* has no attribute 'Missing'"),
        ("{module}:number", "is no class: 5"),
        (":", "cannot be imported"),
    ],
)
def test_a_name_that_leads_nowhere(module, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        find_drafter(name.format(module=module), has_draft=True)
    assert name == "{module}:number" or "module:Class" in caught.value.hint


@pytest.mark.parametrize("as_class", [False, True])
def test_a_users_class_drafts_for_a_session_and_those_beside_it(tiny_bundle, module, as_class):
    wanted = cospec.load(tiny_bundle.root, drafter="none").generate("the block", max_tokens=12)
    made = __import__(module).Constant
    session = cospec.load(tiny_bundle.root, drafter=made if as_class else f"{module}:Constant")
    assert session.drafter == ("Constant" if as_class else f"{module}:Constant")
    assert session.caches.draft is None, "the draft model is not loaded"
    for each in (session, session.new_session()):
        found = each.generate("the block", max_tokens=12, num_draft_tokens=3)
        assert found.tokens == wanted.tokens
        assert found.stats.num_draft_tokens > 0
    assert len(made.made) == 2, "a new drafter for each generation"
    assert made.made[0].codec is session.codec
    with pytest.raises(UsageError, match="drafts without one"):
        session.generate("x", mode="collab", arbiter=AlwaysDraft())
    again = session.generate("the block", max_tokens=12, num_draft_tokens="auto")
    assert again.tokens == wanted.tokens


def test_a_class_that_uses_the_draft_model_gets_its_decoder(tiny_bundle, module):
    session = cospec.load(tiny_bundle.root, drafter=f"{module}:WithModel")
    session.generate("x", max_tokens=2)
    assert __import__(module).WithModel.made[-1].decoder is session.caches.draft is not None
    with pytest.raises(UsageError, match="no draft model"):
        find_drafter(f"{module}:WithModel", has_draft=False)


def test_an_installed_drafter_is_listed_and_found(tiny_bundle, module, tmp_path):
    facts = tmp_path / "mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[cospec.drafters]\nconstant = {module}:Constant\n")
    assert find_drafter("constant", has_draft=False).make is __import__(module).Constant
    with pytest.raises(UsageError) as caught:
        find_drafter("other", has_draft=False)
    assert "auto, model, ngram, combined, none, constant" in str(caught.value.hint)
    arguments = ["--engine-dir", str(tiny_bundle.root), "--drafter", "constant", "--json", "x"]
    result = CliRunner().invoke(main, ["--max-tokens", "4", *arguments])
    assert result.exit_code == 0, result.output


def test_own_drafters_by_position_of_the_arguments(tiny_bundle):
    class Echo:
        def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
            return tuple(tokens[-count:])

    session = cospec.load(tiny_bundle.root, drafter=lambda context: Echo())
    assert session.drafter == "<lambda>"
    found = session.generate("the block", max_tokens=8, num_draft_tokens=2)
    assert found.stats.num_draft_tokens > 0


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_walk_through_works_as_it_is_written(tiny_pair_bundle, tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_pair_bundle)
    code = [*blocks(page, "python"), *blocks(page, "toml")]
    for block in code:
        name = re.match(r"# (\S+)\n", block)
        assert name is not None, "each block names its file"
        (tmp_path / name[1]).write_text(block, encoding="utf-8")
    assert sum(block.count("\n") for block in code) <= 60
    installed = tmp_path / "installed"
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1"}
    environment = (
        os.environ
        | offline
        | {
            "PIP_TARGET": str(installed),
            "PYTHONPATH": path,
            "PYTHONSAFEPATH": "1",  # as in a console script, the current folder is not on the path
        }
    )
    run = "from cospec.runtime.cli.run import main; main()"
    programs = {
        "cospec-run": [sys.executable, "-c", run],
        "pip": [sys.executable, "-m", "pip"],
        "python": [sys.executable],
    }
    printed = []
    for command in re.findall(r"^\$ (.*)$", "\n".join(blocks(page, "console")), re.MULTILINE):
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [*programs[program], *arguments],
            cwd=tmp_path,
            env=environment | ({"PYTHONSAFEPATH": ""} if program == "python" else {}),
            capture_output=True,
            check=False,
            timeout=300,
            encoding="utf-8",
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed.append((done.stdout.strip(), done.stderr))
    by_class, alone, _, by_name, program = printed
    assert by_class[0] == alone[0] == by_name[0] == program[0].rpartition("\n")[0]
    for _, statistics in (by_class, by_name):
        drafted = re.search(r"drafted +(\d+)", statistics)
        assert drafted is not None
        assert int(drafted[1]) > 0
    assert not program[0].endswith("\n0 tokens drafted")
