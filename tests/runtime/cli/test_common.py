"""How every command ends: signals, a full disk behind stdout, and what is left on the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cospec.errors import MissingExtraError
from cospec.runtime.cli.common import CospecCommand

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and devices of POSIX")

WRITING = """
import sys, time
import click
from cospec.runtime.bundle.writer import BundleWriter
from cospec.runtime.cli.common import CospecCommand

@click.command(cls=CospecCommand)
@click.argument("output")
def main(output):
    with BundleWriter(output, force=True) as writer:
        writer.path("target/model.onnx").write_bytes(b"half")
        print("ready", flush=True)
        time.sleep(60)

main()
"""


def end_while_writing(output: Path, number: int) -> tuple[int, str]:
    """Send a signal to a command that is writing a bundle; return its exit code and its stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)]
)
def test_a_signal_ends_a_command_and_leaves_no_half_bundle(tmp_path, name, code):
    returncode, stderr = end_while_writing(tmp_path / "mine", getattr(signal, name))
    assert returncode == code
    left = [path.name for path in tmp_path.iterdir() if "staging" in path.name]
    if name == "SIGKILL":  # nothing can run then: the next command of any name clears up
        assert len(left) == 1
        end_while_writing(tmp_path / "another", signal.SIGTERM)
        left = [path.name for path in tmp_path.iterdir() if "staging" in path.name]
    else:
        assert stderr.strip() == "interrupted"
    assert left == []


@pytest.mark.parametrize(
    "error", [ImportError("x"), MissingExtraError("x", "cpu", "Running"), OSError("x")]
)
def test_an_error_that_a_library_makes_of_a_signal_counts_as_the_signal(error):
    @click.command(cls=CospecCommand)
    def main() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise error from None

    result = CliRunner().invoke(main)
    assert result.exit_code == 143
    assert result.stderr == "interrupted\n"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_a_destructor_ends_the_command_too(name, code):
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(getattr(signal, name))

    @click.command(cls=CospecCommand)
    def main() -> None:
        held = [Dying()]
        held.clear()
        threading.Event().wait(5)
        click.echo("went on")

    before = sys.unraisablehook
    result = CliRunner().invoke(main)
    assert (result.exit_code, result.output.strip()) == (code, "interrupted")
    assert sys.unraisablehook is before


def test_signals_are_as_before_when_a_command_has_ended():
    @click.command(cls=CospecCommand)
    def main() -> None:
        during.append(signal.getsignal(signal.SIGTERM))

    during: list[object] = []
    before = signal.getsignal(signal.SIGTERM)
    assert CliRunner().invoke(main).exit_code == 0
    assert signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL
    assert during != [signal.SIG_DFL]
    thread = threading.Thread(target=lambda: CliRunner().invoke(main))
    thread.start()  # may set no handler, and runs all the same
    thread.join()
    assert during[1] == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    @click.command(cls=CospecCommand)
    def main() -> None:
        signal.raise_signal(signal.SIGHUP)
        click.echo("went on")

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert CliRunner().invoke(main).output == "went on\n"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--json"], ["--json", "--engine-dir", "/no"]])
def test_a_full_disk_behind_stdout_is_an_error_of_its_own(arguments):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cospec.runtime.cli.doctor", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr.startswith("error: standard output: the disk is full")
    assert "Traceback" not in done.stderr
    assert done.returncode == 7
