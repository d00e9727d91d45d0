"""What all command-line tools share: how errors end a command, and the exit codes in --help."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ...errors import CospecError, UsageError

INTERRUPTED_EXIT_CODE = 130  # what shells report for a process that Ctrl-C ended
TRACEBACK_VARIABLE = "COSPEC_TRACEBACK"

engine_dir_option = click.option(
    "--engine-dir",
    required=True,
    type=click.Path(path_type=Path),
    help="A bundle's folder, or a folder that holds exactly one bundle.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


class CospecCommand(click.Command):
    """A click command whose errors are one line, a hint and an exit code.

    Use as `@click.command(cls=CospecCommand)`. A `CospecError` prints `error: ...` and its hint on
    stderr and exits with its code; with --json or --jsonl among the arguments it also prints one
    JSON object on stdout. Ctrl-C exits with 130, a closed pipe quietly with 1. Anything else is a
    bug and shows its traceback; COSPEC_TRACEBACK=1 shows one for a `CospecError` too.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and leave the process, as `click.Command.main` does."""
        arguments = list(sys.argv[1:] if args is None else args)

        def run() -> Any:
            return super(CospecCommand, self).main(
                arguments, prog_name, complete_var, standalone_mode=False, **extra
            )

        report = _report(arguments)
        return _run_standalone(run, report) if standalone_mode else run()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own epilog, then what the exit codes mean."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in exit_codes()])


class CospecGroup(CospecCommand, click.Group):
    """A click group with the manners of `CospecCommand`, for tools with subcommands."""


def exit_codes() -> list[tuple[int, str]]:
    """Return (code, meaning) of every way a command can end, from the error classes themselves."""
    errors: list[type[CospecError]] = [CospecError, *CospecError.__subclasses__()]
    named = [(error.exit_code, (error.__doc__ or "").splitlines()[0]) for error in errors]
    named[0] = (CospecError.exit_code, "Any other error.")
    return sorted([(0, "Success."), *named, (INTERRUPTED_EXIT_CODE, "Interrupted.")])


def at_least(option: str, value: int | None, low: int) -> None:
    """Refuse a number below `low`; None was not given.

    Raises:
        UsageError: names the option.
    """
    if value is not None and value < low:
        raise UsageError(f"{option} is {value}, but must be at least {low}")


def print_json(value: object) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """Print a value as one line of JSON on stdout."""
    click.echo(json.dumps(value))


def _report(arguments: Sequence[str]) -> Callable[[object], None]:
    """Return what prints an error on stdout, in the form that the arguments ask for, if any."""
    if "--json" in arguments:
        return print_json
    return print_json_line if "--jsonl" in arguments else lambda value: None


def _run_standalone(run: Callable[[], Any], report: Callable[[object], None]) -> NoReturn:
    try:
        code = run()
        sys.stdout.flush()  # here, where a closed pipe can be handled
    except CospecError as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        report(_error_json(type(error).__name__, error.message, error.hint, error.exit_code))
        sys.exit(error.exit_code)
    except click.Abort:  # click's name for Ctrl-C and for a closed stdin
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    except click.ClickException as error:
        error.show()
        kind = type(error).__name__
        report(_error_json(kind, error.format_message(), None, error.exit_code))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _error_json(kind: str, message: str, hint: str | None, exit_code: int) -> object:
    details = {"type": kind, "message": message, "hint": hint, "exit_code": exit_code}
    return {"error": details}
