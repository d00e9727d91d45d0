"""What a new user meets first: a command without arguments, and completion in the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cospec.runtime.cli.run import main as run_main
from cospec.runtime.cli.serve import main as serve_main


@pytest.mark.parametrize("command", [run_main, serve_main], ids=["run", "serve"])
def test_a_command_without_arguments_says_what_to_type_next(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, [], prog_name="cospec-x")
    assert result.exit_code == 2
    assert "cospec-export --target tiny && cospec-x --engine-dir models/tiny" in result.stderr
    for name in ("bundles/mine", "models/tiny"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cospec.json").write_text("{}")
    result = CliRunner().invoke(command, [], prog_name="cospec-x")
    assert "cospec-x --engine-dir bundles/mine" in result.stderr
    assert "cospec-x --engine-dir models/tiny" in result.stderr
    assert "cospec-export" not in result.stderr


COMPLETIONS = {"bash": "complete", "zsh": "compdef", "fish": "complete --no-files"}


@pytest.mark.parametrize("shell", sorted(COMPLETIONS))
def test_the_documented_line_completes_options_and_values(shell):
    page = (Path(__file__).parents[3] / "docs/cli.md").read_text(encoding="utf-8")
    assert f"_COSPEC_RUN_COMPLETE={shell}_source cospec-run" in page
    program = "from cospec.runtime.cli.run import main; main(prog_name='cospec-run')"

    def complete(**env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    script = complete(_COSPEC_RUN_COMPLETE=f"{shell}_source")
    assert COMPLETIONS[shell] in script
    assert "cospec-run" in script
    if shell == "bash":
        words = {"_COSPEC_RUN_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
        assert "plain,collab" in complete(COMP_WORDS="cospec-run --mode c", **words)
        words["COMP_CWORD"] = "1"
        assert "plain,--engine-dir" in complete(COMP_WORDS="cospec-run --engine", **words)
