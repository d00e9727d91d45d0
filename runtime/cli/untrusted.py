"""A bundle from somebody whom the user does not trust: run in a process of its own, with limits.

Its files are hashed, compared with the manifest and read with budgets. But ONNX Runtime and tokenizers
are not ours, and a file that was made for it may crash them, hang them or fill the memory. So the
process that reads the bundle is a child: its memory is limited, it must load in time, and its death is
an error like any other. This is no sandbox: code that a parser can be made to run has the rights of the
user.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from ...errors import BundleError, UsageError
from ..bundle.files import format_bytes
from ..bundle.manifest import Manifest
from ..bundle.reader import read_manifest
from ..engines.host_memory import available_memory

BASE_BYTES = 4 << 30
"""Address space of the interpreter, its libraries and their threads, whatever the bundle."""
WEIGHTS_FACTOR = 3
"""Copies of the weights at most: mapped, prepacked, and in another precision."""
BASE_SECONDS, BYTES_PER_SECOND = 30, 50 << 20
"""Time to load: for the libraries, and for the bundle's files on a slow disk."""


def supervise(folder: Path) -> Callable[[], None]:
    """Continue in a child with limits; the parent waits for it and ends as it does.

    Args:
        folder: of the bundle.

    Returns:
        In the child: a function to call when the bundle has been loaded. From then on only the
        options of a generation limit its time.

    Raises:
        BundleError: in the parent: the child crashed, or did not load the bundle in time.
        UsageError: this system has no such limits.
    """
    if not hasattr(os, "fork"):
        raise UsageError("--untrusted needs the process limits of Linux or macOS")
    import resource

    manifest = read_manifest(folder)
    memory, seconds = memory_limit(manifest), load_seconds(manifest)
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        _wait(child, reader, folder, seconds, memory)
    os.close(reader)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return lambda: os.close(writer)  # the parent reads the end of the pipe


def memory_limit(manifest: Manifest) -> int:
    """Return the bytes of address space that a session on a bundle may have."""
    models = manifest.models
    caches = sum(m.cache_bytes(manifest.capacity) for m in (models.target, models.draft) if m)
    files = sum(entry.size for entry in manifest.files)
    wanted = BASE_BYTES + WEIGHTS_FACTOR * files + 2 * caches
    free = available_memory()
    return wanted if free is None else min(wanted, max(free, BASE_BYTES))


def load_seconds(manifest: Manifest) -> float:
    """Return the seconds in which a bundle must have been loaded."""
    return BASE_SECONDS + sum(entry.size for entry in manifest.files) / BYTES_PER_SECOND


def _wait(child: int, reader: int, folder: Path, seconds: float, memory: int) -> NoReturn:
    # Ctrl-C reaches the child too, and how that ends is what counts.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    late = False
    try:
        if not select.select([reader], [], [], seconds)[0]:
            late = True
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    except BaseException:  # a signal that ends this process ends the child
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(reader)
    if os.WIFEXITED(status):
        sys.stdout.flush()
        raise click.exceptions.Exit(os.WEXITSTATUS(status))
    how = (
        f"was not loaded within {seconds:.0f} seconds"
        if late
        else f"ended the process that ran it ({signal.Signals(os.WTERMSIG(status)).name}), whose "
        f"memory is limited to {format_bytes(memory)}"
    )
    raise BundleError(
        f"{folder}: the bundle {how}",
        hint="it is damaged or was made to harm: take it from somebody you trust",
    )
