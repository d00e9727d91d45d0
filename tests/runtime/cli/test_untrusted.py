"""Bundles that nobody vouches for: whatever their child process does is an answer or an error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs

from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.cli import untrusted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")

SCRIPT = """
import os, sys, time
from pathlib import Path
import click
from cospec.runtime.cli import untrusted
from cospec.runtime.cli.common import CospecCommand

@click.command(cls=CospecCommand)
@click.argument("folder")
def main(folder):
    loaded = untrusted.supervise(Path(folder))
    exec(os.environ["CHILD"])

untrusted.BASE_SECONDS = 1
main()
"""


RUN = "from cospec.runtime.cli.run import main; main()"


RUN = "from cospec.runtime.cli.run import main; main()"


def supervised(folder: Path, child: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose child does `child` after it was forked."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={"CHILD": child, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("child", "code", "said"),
    [
        ("loaded(); print('well')", 0, "well"),
        ("loaded(); time.sleep(2); print('late is fine')", 0, "late is fine"),
        ("sys.exit(5)", 5, ""),
        ("raise click.UsageError('wrong')", 2, "wrong"),
        ("raise untrusted.BundleError('damaged')", 3, "error: damaged"),
        ("time.sleep(60)", 3, "was not loaded within 1 seconds"),
        ("os.abort()", 3, "ended the process that ran it (SIGABRT)"),
        ("loaded(); os.abort()", 3, "ended the process that ran it (SIGABRT)"),
        ("os.kill(os.getpid(), 9)", 3, "(SIGKILL), whose memory is limited to"),
        ("bytearray(1 << 40)", 7, "there is not enough memory"),
    ],
)
def test_whatever_the_child_does_is_an_answer_or_an_error(tiny_bundle, child, code, said):
    done = supervised(tiny_bundle.root, child)
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_a_signal_ends_parent_and_child(tiny_bundle, tmp_path):
    child = (
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); loaded(); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tiny_bundle.root)],
        env={"CHILD": child, "PYTHONPATH": ":".join(sys.path)},
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_limits_follow_the_bundle_and_the_machine(tiny_bundle, monkeypatch):
    manifest = read_manifest(tiny_bundle.root)
    monkeypatch.setattr(untrusted, "available_memory", lambda: None)
    small = untrusted.memory_limit(manifest)
    larger = structs.replace(manifest, capacity=manifest.capacity * 1024)
    assert untrusted.BASE_BYTES < small < untrusted.memory_limit(larger)
    monkeypatch.setattr(untrusted, "available_memory", lambda: small - 1)
    assert untrusted.memory_limit(larger) == small - 1
    assert untrusted.load_seconds(manifest) >= untrusted.BASE_SECONDS


def test_an_untrusted_bundle_generates(tiny_bundle):
    command = [sys.executable, "-c", RUN, "--untrusted", "--json"]
    arguments = ["--engine-dir", str(tiny_bundle.root), "--max-tokens", "3", "--raw", "12 + 30"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tokens"]) == 3
