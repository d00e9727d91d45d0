"""What a comparison needs on disk, made once: environments of other runtimes, and their files.

Everything is built beside its name and renamed when it is whole, so a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from cospec.errors import BackendError, ResourceError

REQUIREMENTS = Path(__file__).parent / "requirements"


class PreparationError(BackendError):
    """Something that a comparison needs could not be made."""


class Workshop:
    """Makes what is missing below one folder.

    Args:
        root: the folder.
        progress: called with what is being made, before it is.
    """

    def __init__(self, root: Path, progress: Callable[[str], None] = lambda what: None) -> None:
        self.root = root.resolve()
        self._progress = progress

    def once(self, path: Path, what: str, make: Callable[[Path], object]) -> Path:
        """Return `path`; if it does not exist, have `make` write it under another name first."""
        if path.exists():
            return path
        self._progress(what)
        part = path.with_name(f".{path.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(part)
            part.rename(path)
        except OSError as error:
            raise ResourceError(
                f"{what}: cannot write {path}: {error.strerror}",
                hint="choose a folder with more room with --work",
            ) from error
        return path

    def environment(self, name: str) -> Path:
        """Return the Python of the environment `requirements/NAME.txt`.

        Raises:
            PreparationError: pip could not make it.
        """
        file = REQUIREMENTS / f"{name}.txt"
        key = hashlib.sha256((file.read_text(encoding="utf-8") + sys.version).encode()).hexdigest()
        folder = self.root / "environments" / f"{name}-{key[:16]}"
        whole = folder / ".whole"  # an environment cannot be renamed: its scripts name their folder
        if not whole.exists():
            self._progress(f"installing {name}")
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", file])
            whole.touch()
        return folder / "bin/python"


def run(command: list[str | Path]) -> None:
    """Run a command of another environment, quietly.

    Raises:
        PreparationError: it failed; the message is the last line that it wrote.
    """
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        words = " ".join(str(word) for word in command[1:4])
        raise PreparationError(f"{Path(str(command[0])).name} {words} ... failed: {last}")
