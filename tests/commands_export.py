"""Call `cospec-export` in this process, and look at what it left."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from cospec.export import cli

ONE_SCREEN = 24  # lines


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def contents(folder: Path) -> list[str]:
    """Names in a folder; the lock file of a writer stays, by design."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# What the user got wrong.


def refused(result: Result, code: int, *parts: str) -> None:
    """The command ended with `code`, and one screen of its error text holds all `parts`."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) <= ONE_SCREEN
    for part in parts:
        assert part in result.stderr
