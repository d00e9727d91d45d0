"""The built wheel: it holds every module, and each command runs from it and not from the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("runtime", "export", "models", "calibration")
TORCH_FREE = ("run", "serve", "doctor", "inspect", "verify")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r'^cospec-(\w+) = "([\w.]+):main"', PROJECT, re.MULTILINE))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_module_and_nothing_of_the_checkout(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        f"cospec/{path.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert len(modules) > 150
    assert modules - held == set()
    data = {name for name in held if not name.endswith(".py")}
    assert {"cospec/py.typed", "cospec/runtime/trace/page.html"} <= data
    assert any(name.endswith("tiny_pair/target/model.safetensors") for name in data)
    outside = {name.split("/")[1] for name in held} - {*ROOMS, "__init__.py", "errors.py"}
    assert outside == {"py.typed"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_shows_its_help_from_the_wheel(unpacked, command):
    program = (
        "import sys, cospec; assert cospec.__file__.startswith(sys.argv[1]), cospec.__file__; "
        f"from {COMMANDS[command]} import main; main(['--help'], prog_name='cospec-{command}')"
    )
    if command in TORCH_FREE:
        program = "import sys; sys.modules['torch'] = None; " + program
    done = subprocess.run(
        [sys.executable, "-c", program, str(unpacked)],
        cwd=unpacked,
        env={"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: cospec-{command}" in done.stdout
