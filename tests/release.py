"""Check a release: build wheel and sdist, and use the wheel in fresh environments as a user would.

    python tests/release.py --output dist

The runtime is tried on every Python from 3.10 to 3.13 that this machine has. Needs a package index. The
suite's `test_wheel.py` is the short form of this, without environments.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("run", "serve", "doctor", "inspect", "verify", "kit", "export", "calibrate", "bench")
OPTIMUM = "export/optimum/register_cospec.py"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PROMPT = "Mia has 58 keys and Sam 55 more than Mia. How many in all?"
RIGHT = "171"


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout and return its output; stop if it fails."""
    print("  $", *(Path(str(word)).name if i == 0 else word for i, word in enumerate(words)))
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}")
    return done.stdout


def environment(folder: Path, requirement: str, python: str = sys.executable) -> Path:
    """Return the folder of programs of a fresh environment with `requirement` installed."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    programs = folder / "bin"
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    run(programs / "pip", "install", "--quiet", *pins, requirement, cwd=folder)
    return programs


def release_version() -> str:
    """Return the version to release, which CHANGELOG.md must describe.

    Raises:
        SystemExit: it does not.
    """
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(found[1])} - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        raise SystemExit(
            f"CHANGELOG.md has no section '## {found[1]} - DATE': rename '## Unreleased', and set the "
            "same version and date in CITATION.cff"
        )
    return found[1]


def works(python: str) -> bool:
    """Whether an interpreter is installed; its name alone may belong to a version manager."""
    path = shutil.which(python)
    if path is None:
        return False
    return subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


def main() -> None:
    """Build and check; print what to tag."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the archives")
    output = parser.parse_args().output.resolve()
    version = release_version()
    run(sys.executable, "-m", "build", "--outdir", output, ROOT, cwd=ROOT)
    wheel = next(output.glob(f"cospec-{version}-*.whl"))
    sdist = output / f"cospec-{version}.tar.gz"
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exporting = environment(folder / "export", f"cospec[optimum,cpu] @ file://{wheel}")
        for command in COMMANDS:
            run(exporting / f"cospec-{command}", "--help", cwd=folder)
        bundle = folder / "tiny"
        run(exporting / "optimum-cli", "export", "cospec", "-m", "tiny", bundle, cwd=folder)

        for version_of_python in PYTHONS:
            python = f"python{version_of_python}"
            if not works(python):
                print(f"SKIPPED: python{version_of_python} is not installed")
                continue
            place = folder / f"cpu-{version_of_python}"
            running = environment(place, f"cospec[cpu] @ file://{wheel}", python)
            answer = run(running / "cospec-run", "--engine-dir", bundle, PROMPT, cwd=folder)
            if RIGHT not in answer:
                raise SystemExit(f"the answer to {PROMPT!r} lacks {RIGHT}: {answer}")
            program = "import cospec, importlib.util as u; assert u.find_spec('torch') is None"
            run(running / "python", "-c", program, cwd=folder)

        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {"README.md", "LICENSE", "pyproject.toml", "setup.py", OPTIMUM}
        missing = wanted - names
        if missing:
            raise SystemExit(f"the sdist lacks {', '.join(sorted(missing))}")
        from_source = environment(folder / "sdist", f"cospec[cpu] @ file://{sdist}")
        run(from_source / "cospec-run", "--engine-dir", bundle, PROMPT, cwd=folder)
    print(
        f"{wheel.name} and {sdist.name} work.\nTo release: git tag -a v{version}; git push --tags"
    )


if __name__ == "__main__":
    main()
