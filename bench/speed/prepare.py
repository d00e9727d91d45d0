"""What a measurement needs on disk, made once: pairs, bundles, other runtimes' files, environments.

Everything has a name made from what went into it, is built beside that name, and renamed when it is
whole: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...calibration.journal import Journal, digest
from ...errors import CospecError, ResourceError
from .pair import write_pair
from .peer_formats import PairFormat, both

NUM_DRAFT_TOKENS = 8
"""The longest draft that is measured, and the bundle's default: what `auto` may choose up to."""

PACKAGE = Path(__file__).parents[2]
BUNDLE_SOURCES = ("export", "models", "calibration/weights")
"""Folders of the package whose modules decide what a bundle holds."""

MEASURED_SOURCES = ("runtime", "runtime/drafting", "runtime/engines", "bench/speed")
"""Folders whose modules decide how fast it is played, and what is measured."""

REQUIREMENTS = Path(__file__).parent / "requirements"
_LAYOUT = 2
"""Goes into every name; raise it when what is written under a name changes."""


class PreparationError(CospecError):
    """Something that a measurement needs could not be made."""

    exit_code = 4


@dataclass(frozen=True)
class Pair:
    """A pair of checkpoints on disk, and the name that stands for it in other names."""

    folder: Path
    name: str


class Workshop:
    """Makes what is missing below one folder.

    Args:
        root: the folder.
        report: called with what is being made, before it is.
    """

    def __init__(self, root: Path, report: Callable[[str], None] = lambda what: None) -> None:
        self.root = root.resolve()
        self._report = report

    def once(self, path: Path, what: str, make: Callable[[Path], object]) -> Path:
        """Return `path`; where it is not there, have `make` write it under another name first."""
        if path.exists():
            return path
        self._report(what)
        part = path.with_name(f".{path.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(part)
            part.rename(path)
            part.with_name(f".{part.name}.lock").unlink(missing_ok=True)  # the exporter's
        except OSError as error:
            raise ResourceError(
                f"{what}: cannot write {path}: {error.strerror}",
                hint="choose a folder with room with --work",
            ) from error
        return path

    def pair(self, noise: float) -> Pair:
        """Return the controlled pair of that noise; see `pair.write_pair`."""
        name = f"noise{noise:g}-{_LAYOUT}"
        folder = self.once(
            self.root / "pairs" / name,
            f"writing the controlled pair, noise {noise:g}",
            lambda part: write_pair(part, noise),
        )
        return Pair(folder, name)

    def bundle(self, pair: Pair, weights: PairFormat, capacity: int) -> Path:
        """Return the pair as a bundle with that capacity, its weights in that format.

        The name holds a digest of the sources that make bundles: when they change, a new bundle takes
        the place of the old one.
        """

        def made(form: PairFormat, what: str, make: Callable[[Path], object]) -> Path:
            name = f"{pair.name}-{capacity}-{form}"
            folder = self.root / "bundles" / f"{name}-{sources_digest()}"
            if not folder.exists():
                self.once(folder, what, make)
                _remove_others(folder, name)
            return folder

        fp32 = made(both("fp32"), "exporting the pair", lambda part: _export(pair, part, capacity))
        if weights == both("fp32"):
            return fp32
        return made(
            weights,
            f"converting the bundle to {weights}",
            lambda part: _convert(fp32, part, weights),
        )

    def environment(self, name: str) -> Path:
        """Return the python of the environment `requirements/NAME.txt`.

        Raises:
            PreparationError: pip could not make it.
        """
        file = REQUIREMENTS / f"{name}.txt"
        key = digest(file.read_text(encoding="utf-8") + sys.version)
        folder = self.root / "environments" / f"{name}-{key}"
        # An environment knows its own path, so it is not renamed: a file says that it is whole.
        whole = folder / "whole"
        if not whole.exists():
            self._report(f"making the environment of {name}")
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", file])
            whole.touch()
        return folder / "bin/python"


def journal(root: Path, kind: str, facts: object, report: Callable[[str], None]) -> Journal:
    """Return the journal of a measurement of these facts, made with these sources."""
    name = digest(f"{facts} {sources_digest()} {sources_digest(MEASURED_SOURCES)}")
    path = root / f"stopped-{kind}-{name}.jsonl"
    kept = Journal(path)
    if kept.done:
        report(f"continuing a measurement that was stopped: {', '.join(kept.done)} from {path}")
    return kept


@lru_cache
def sources_digest(folders: tuple[str, ...] = BUNDLE_SOURCES) -> str:
    """Return what stands for this version of the modules in some folders of the package.

    Computed once: all bundles of a run are of one version.
    """
    parts = []
    for name in folders:
        for file in sorted((PACKAGE / name).glob("*.py")):
            parts += [f"{name}/{file.name}", file.read_text(encoding="utf-8")]
    return digest(json.dumps(parts))


def _remove_others(folder: Path, name: str) -> None:
    """Remove what can be removed of the bundles of that name with another digest, or with none."""
    of_name = re.compile(re.escape(name) + r"(-[0-9a-f]{16})?")
    for other in folder.parent.iterdir():
        if other != folder and of_name.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)


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
        said = lines[-1].strip() if lines else "nothing"
        raise PreparationError(
            f"{Path(str(command[0])).name} {' '.join(str(w) for w in command[1:4])} ... failed: {said}"
        )


def link_files(source: Path, destination: Path) -> None:
    """Link the files of a folder into another one, all but its configuration for genai."""
    destination.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name != "genai_config.json":
            os.link(file, destination / file.name)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _export(pair: Pair, output: Path, capacity: int) -> None:
    from ...export.pipeline import ExportOptions, export_bundle

    export_bundle(
        ExportOptions(
            target=str(pair.folder / "target"),
            draft=str(pair.folder / "draft"),
            capacity=capacity,
            num_draft_tokens=NUM_DRAFT_TOKENS,
        ),
        output,
    )


def _convert(bundle: Path, output: Path, weights: PairFormat) -> None:
    from ...calibration.weights.converted_bundle import convert_bundle

    convert_bundle(bundle, output, weights.target, weights.draft)
