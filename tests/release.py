"""Check a release: build wheel and sdist, and use the wheel in fresh environments as a user would.

    python tests/release.py --output dist

Needs a package index. The suite's `test_wheel.py` is the short form of this, without environments.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("run", "serve", "doctor", "inspect", "verify", "export", "calibrate", "bench")
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


def environment(folder: Path, requirement: str) -> Path:
    """Return the folder of programs of a fresh environment with `requirement` installed."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    run(programs / "pip", "install", "--quiet", *pins, requirement, cwd=folder)
    return programs


def main() -> None:
    """Build and check; print what to tag."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the archives")
    output = parser.parse_args().output.resolve()
    run(sys.executable, "-m", "build", "--outdir", output, ROOT, cwd=ROOT)
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    wheel = next(output.glob(f"cospec-{version[1]}-*.whl"))
    sdist = output / f"cospec-{version[1]}.tar.gz"
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exporting = environment(folder / "export", f"cospec[export,cpu] @ file://{wheel}")
        for command in COMMANDS:
            run(exporting / f"cospec-{command}", "--help", cwd=folder)
        bundle = folder / "tiny"
        run(exporting / "cospec-export", "--target", "tiny", "--output", bundle, cwd=folder)

        running = environment(folder / "cpu", f"cospec[cpu] @ file://{wheel}")
        answer = run(running / "cospec-run", "--engine-dir", bundle, PROMPT, cwd=folder)
        if RIGHT not in answer:
            raise SystemExit(f"the answer to {PROMPT!r} lacks {RIGHT}: {answer}")
        program = "import cospec, importlib.util as u; assert u.find_spec('torch') is None"
        run(running / "python", "-c", program, cwd=folder)

        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        missing = {"README.md", "LICENSE", "pyproject.toml", "setup.py"} - names
        if missing:
            raise SystemExit(f"the sdist lacks {', '.join(sorted(missing))}")
        from_source = environment(folder / "sdist", f"cospec[cpu] @ file://{sdist}")
        run(from_source / "cospec-run", "--engine-dir", bundle, PROMPT, cwd=folder)
    print(
        f"{wheel.name} and {sdist.name} work.\nTo release: git tag -a v{version[1]}; git push --tags"
    )


if __name__ == "__main__":
    main()
