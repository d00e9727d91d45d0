"""The versions of TensorRT-RTX that graphs are built with: the installed one, and older ones beside it.

Older ones lie in folders of their own below .cache, fetched once by pip. A process uses one of them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cospec.runtime.tensorrt.api import import_tensorrt, release, version_of
from cospec.runtime.tensorrt.devices import Device

CACHE = Path(__file__).resolve().parent.parent / ".cache"
NEWEST = "1.7.1.116"
# 1.4 has the Python API of TensorRT 10.16 (JetPack 7.2), 1.5 that of 11.0.
OLDER = ("1.5.0.114", "1.4.0.76")


def nearest(device: Device) -> str:
    """Return the version that comes nearest to a device's own TensorRT, for fp16 graphs."""
    if device.flavour == "rtx" or release(device.trt_version) >= (11, 1):
        return NEWEST
    return OLDER[0] if release(device.trt_version) >= (11, 0) else OLDER[1]


def packages_of(version: str) -> Path | None:
    """Return the folder of an older version, downloaded (95 MB) if the cache does not hold it.

    None means the one that is installed.

    Raises:
        RuntimeError: it cannot be downloaded.
    """
    if version == NEWEST:
        return None
    folder = CACHE / f"tensorrt-rtx-{version}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        part = Path(scratch) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--no-cache-dir", "--target", str(part), f"tensorrt-rtx=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            raise RuntimeError(
                f"Cannot install tensorrt-rtx {version}: {done.stderr.strip()[-800:]}"
            )
        shutil.move(part, folder)
    return folder


def use(version: str) -> None:
    """Make this process use a version; call it before TensorRT is imported."""
    folder = packages_of(version)
    if folder is not None:
        sys.path.insert(0, str(folder))


def imported(version: str) -> Any:
    """Return the module of a version that this process uses.

    Raises:
        RuntimeError: it is another one.
    """
    trt = import_tensorrt("rtx")
    if version_of(trt) != version:
        raise RuntimeError(f"this is TensorRT-RTX {version_of(trt)}, not {version}")
    return trt
