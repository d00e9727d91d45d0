"""The built wheel: it holds every module, and each command runs from it and not from the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("runtime", "export", "models", "calibration")
OPTIMUM = "optimum/commands/register/register_cospec.py"
"""Where optimum-cli looks for commands; the folder belongs to no package."""
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
        if path.parent.name != "optimum"
    }
    assert len(modules) > 150
    assert modules - held == set()
    held.remove(OPTIMUM)
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


def optimum_cli(unpacked: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run optimum's own program with the wheel on its path, and without the editable install (-S)."""
    pytest.importorskip("optimum.commands.optimum_cli", reason="the extra `optimum` is missing")
    path = f"{unpacked}:{sysconfig.get_path('purelib')}"
    return subprocess.run(
        [sys.executable, "-S", "-m", "optimum.commands.optimum_cli", "export", "cospec", *words],
        cwd=unpacked,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_optimum_cli_has_every_option_of_the_export(unpacked):
    import click

    from cospec.export.cli import main

    done = optimum_cli(unpacked, "--help")
    assert done.returncode == 0, done.stderr
    options = [each for each in main.params if isinstance(each, click.Option)]
    assert len(options) > 15
    shown = done.stdout
    for option in options:
        name = "output" if option.name == "output" else option.opts[0]
        assert re.search(rf"(^|\W){re.escape(name)}\W", shown), name
        for choice in option.type.choices if isinstance(option.type, click.Choice) else ():
            assert choice in shown


def test_optimum_cli_exports_a_bundle(unpacked, tmp_path):
    from cospec.runtime.bundle.reader import Bundle

    bundle = tmp_path / "tiny"
    words = ("--model", "tiny-draft", "--draft", "none", "--capacity", "256", "--no-chat-template")
    done = optimum_cli(unpacked, *words, str(bundle))
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(bundle).manifest
    assert (manifest.capacity, manifest.chat_template, manifest.models.draft) == (256, None, None)
    again = optimum_cli(unpacked, *words, str(bundle))
    assert again.returncode == 7, "an existing bundle is an error with cospec-export's exit code"
    assert "--force" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "Missing option"),
        (("--model", "tiny", "--capacity", "many"), 2, "not a valid integer"),
        (("--model", "nothing"), 6, "no preset"),
    ],
)
def test_optimum_cli_ends_as_cospec_export_does(unpacked, words, code, says):
    done = optimum_cli(unpacked, *words)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
