"""What all commands share: how errors and signals end a command, and the exit codes in --help."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from ...errors import CospecError, ResourceError, UsageError
from ..bundle.durable import lack_of_room, write_error

# What shells report for a process that Ctrl-C or SIGTERM ended.
INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE = 130, 143
TRACEBACK_VARIABLE = "COSPEC_TRACEBACK"
AGAIN_SECONDS = 0.01
"""After which a signal is sent again that came while Python could not raise it."""

Command = Callable[..., Any]


class BundleFolder(click.Path):
    """The folder of a bundle; an address on the hub, hf://org/name[@revision], is downloaded first."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the local folder."""
        from ..bundle.hub import local_folder

        return super().convert(local_folder(value), param, ctx)


class _EngineDirOption(click.Option):
    """The required option `--engine-dir`; if it is missing, the error says which bundles there are."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value of the option."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as error:
            if ctx.resilient_parsing:
                raise
            raise UsageError(
                "no bundle: --engine-dir is missing", hint=_next_step(ctx.command_path)
            ) from error


def _next_step(command: str) -> str:
    """Return what to type next, by the bundles in the folders where exports put them."""
    from ..bundle.manifest import MANIFEST_NAME

    found = [path.parent for path in sorted(Path().glob(f"*/*/{MANIFEST_NAME}"))][:4]
    found = [Path(), *found] if Path(MANIFEST_NAME).is_file() else found
    if found:
        return "\n     ".join(f"{command} --engine-dir {folder.as_posix()}" for folder in found)
    return (
        "make a bundle first, for example of the pair that comes with the package:\n"
        f"     cospec-export --target tiny && {command} --engine-dir models/tiny"
    )


def _engine_dir(kind: click.Path, help_text: str) -> Callable[[Command], Command]:
    return click.option(
        "--engine-dir", required=True, type=kind, help=help_text, cls=_EngineDirOption
    )


engine_dir_option = _engine_dir(
    BundleFolder(),
    "A bundle's folder, a folder that holds exactly one bundle, or hf://org/name[@revision].",
)
local_engine_dir_option = _engine_dir(
    click.Path(path_type=Path), "A bundle's folder, or a folder that holds exactly one bundle."
)
"""For commands that change the bundle."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


def new_bundle_options(command: Command) -> Command:
    """Add `--output` and `--force` of a command that writes a bundle beside the one that it reads."""
    output = click.option(
        "--output", required=True, type=click.Path(path_type=Path), help="The new bundle's folder."
    )
    force = click.option(
        "--force", is_flag=True, help="Replace a bundle that is at --output already."
    )
    return output(force(command))


class CospecCommand(click.Command):
    """A click command whose errors are one line, a hint and an exit code.

    Use as `@click.command(cls=CospecCommand)`. A `CospecError` prints `error: ...` and its hint on
    stderr and exits with its code; with --json or --jsonl among the arguments it also prints one
    JSON object on stdout. Ctrl-C exits with 130, SIGTERM with 143, both after cleaning up; a closed
    pipe quietly with 1, a full disk behind stdout with 7. Anything else is a bug and shows its
    traceback; COSPEC_TRACEBACK=1 shows one for a `CospecError` too.
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
    """A click group that ends as a `CospecCommand` does, for tools with subcommands."""


def exit_codes() -> list[tuple[int, str]]:
    """Return (code, meaning) of every way in which a command can end; errors name their own."""
    errors: list[type[CospecError]] = [CospecError, *CospecError.__subclasses__()]
    named = [(error.exit_code, (error.__doc__ or "").splitlines()[0]) for error in errors]
    named[0] = (CospecError.exit_code, "Any other error.")
    ended = [(INTERRUPTED_EXIT_CODE, "Interrupted."), (TERMINATED_EXIT_CODE, "Ended by SIGTERM.")]
    return sorted([(0, "Success."), *named, *ended])


def at_least(option: str, value: int | None, low: int) -> None:
    """Refuse a number below `low`; None stands for an option that was not given.

    Raises:
        UsageError: names the option.
    """
    if value is not None and value < low:
        raise UsageError(f"{option} is {value}, but must be at least {low}")


def share(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """Parse `1%` or `0.01`; the callback of an option.

    Raises:
        UsageError: it is neither, or negative.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):  # NaN fails too
        raise UsageError(f"{parameter.opts[0]}: '{text}' is not a share such as 1% or 0.01")
    return value


def print_json(value: object) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """Print a value as one line of JSON on stdout."""
    click.echo(json.dumps(value))


def _report(arguments: Sequence[str]) -> Callable[[object], None]:
    """Return the function that prints an error as JSON on stdout, if the arguments ask for JSON."""
    if "--json" in arguments:
        return print_json
    return print_json_line if "--jsonl" in arguments else lambda value: None


def _run_standalone(run: Callable[[], Any], report: Callable[[object], None]) -> NoReturn:
    try:
        with _signals_raised():
            code = run()
            sys.stdout.flush()  # here, where a closed pipe and a full disk can be handled
    except CospecError as error:
        _end(error, report)
    except (
        click.Abort,
        KeyboardInterrupt,
    ) as error:  # Abort is click's name for a closed stdin, too
        numbers = [each.number for each in (error, error.__cause__) if isinstance(each, _Ended)]
        click.echo("interrupted", err=True)
        sys.exit(128 + numbers[0] if numbers else INTERRUPTED_EXIT_CODE)
    except click.ClickException as error:
        error.show()
        kind = type(error).__name__
        report(_error_json(kind, error.format_message(), None, error.exit_code))
        sys.exit(error.exit_code)
    except MemoryError:
        _end(
            ResourceError(
                "there is not enough memory",
                hint="close other programs, or use a smaller model or --capacity",
            ),
            report,
        )
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(1)
    except OSError as error:
        if lack_of_room(error) is None:
            raise
        _discard_stdout()
        _end(write_error(Path(error.filename or "standard output"), error), report)
    sys.exit(code if isinstance(code, int) else 0)


def _end(error: CospecError, report: Callable[[object], None]) -> NoReturn:
    """Print an error and end the process with its exit code."""
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exc()
    click.echo(f"error: {error}", err=True)
    with suppress(OSError):  # stdout may be what cannot be written
        report(_error_json(type(error).__name__, error.message, error.hint, error.exit_code))
    sys.exit(error.exit_code)


def _discard_stdout() -> None:
    """Give stdout, which cannot be written, somewhere to go: the interpreter flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Ended(KeyboardInterrupt):
    """A signal that ends the process: what was begun is cleaned up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise SIGTERM and SIGHUP as exceptions: unhandled, they would leave half-written folders.

    `docker stop`, systemd and `timeout` send SIGTERM, a terminal that closes SIGHUP. Libraries turn the
    exception into errors of their own: after one in the import of ONNX Runtime, that seems not to be
    installed. So an error after a signal counts as the signal. Python drops an exception that leaves a
    destructor or a callback of the garbage collector; then the signal is sent again.
    """
    ended: list[_Ended] = []
    again: list[threading.Timer] = []
    hook = sys.unraisablehook

    def end(number: int, _: object) -> NoReturn:
        ended.append(_Ended(number))
        raise ended[-1]

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            hook(dropped)
            return
        number = getattr(dropped.exc_value, "number", signal.SIGINT)
        again.append(threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)))
        again[-1].daemon = True
        again[-1].start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # Not where somebody ignores or handles them already, as nohup and test runners do.
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    sys.unraisablehook = send_again
    try:
        yield
    except Exception as error:
        if not ended:
            raise
        raise ended[0] from error
    finally:
        sys.unraisablehook = hook
        for timer in again:
            timer.cancel()
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _error_json(kind: str, message: str, hint: str | None, exit_code: int) -> object:
    details = {"type": kind, "message": message, "hint": hint, "exit_code": exit_code}
    return {"error": details}
