"""Call `cospec-run` in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from click.testing import CliRunner, Result

from cospec.runtime.cli.run import main as run_main

PROMPT = "the block of 42"
COMMAND = [
    sys.executable,
    "-c",
    "from cospec.runtime.cli.run import main; print('started', flush=True); main()",
]


def call(*arguments: object, stdin: str | bytes | None = None, colour: bool = False) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(run_main, ["--max-tokens", "12", *words], input=stdin, color=colour)


def launch(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=60,
        **options,
    )
