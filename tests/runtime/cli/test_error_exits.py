"""What a command prints and returns for each kind of error."""

from __future__ import annotations

import json

import click
from click.testing import CliRunner, Result

from cospec.errors import BundleError, CospecError, MissingExtraError
from cospec.runtime.cli.common import CospecCommand, exit_codes, json_option


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_exit_codes_are_those_of_the_error_classes():
    codes = dict(exit_codes())
    assert sorted(codes) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 130, 143]
    assert codes[3] == BundleError.__doc__


@click.command(cls=CospecCommand)
@click.argument("what")
@json_option
def fail(what: str, as_json: bool) -> None:
    raise {
        "interrupt": KeyboardInterrupt(),
        "bug": ZeroDivisionError("a bug"),
        "extra": MissingExtraError("torch", "export", "Exporting"),
        "plain": CospecError("no hint"),
        "pipe": BrokenPipeError(32, "Broken pipe"),
        "memory": MemoryError(),
    }[what]


def test_ctrl_c_exits_with_130():
    result = call(fail, "interrupt")
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted"


def test_a_lack_of_memory_is_an_error_of_its_own():
    result = call(fail, "memory")
    assert result.exit_code == 7
    assert result.stderr.startswith("error: there is not enough memory")


def test_a_bug_is_not_swallowed():
    assert isinstance(call(fail, "bug").exception, ZeroDivisionError)


def test_exit_code_and_hint_come_from_the_error():
    result = call(fail, "extra")
    assert result.exit_code == 4
    assert '  -> pip install "cospec[export]"' in result.stderr
    assert call(fail, "plain").stderr == "error: no hint\n"
    assert json.loads(call(fail, "plain", "--json").stdout)["error"]["hint"] is None


def test_the_traceback_shows_only_when_asked_for(monkeypatch):
    monkeypatch.delenv("COSPEC_TRACEBACK", raising=False)
    assert "Traceback" not in call(fail, "plain").stderr
    monkeypatch.setenv("COSPEC_TRACEBACK", "1")
    assert "Traceback" in call(fail, "plain").stderr
