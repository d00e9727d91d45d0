"""The protocol of all workers: one JSON object per line, requests on stdin, answers on stdout.

A worker runs in its peer's own environment, where nothing of ours is installed: this file needs the
standard library only, and lies beside the workers.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol


class Model(Protocol):
    """A loaded model of a peer."""

    def generate(self, prompt: list[int], tokens: int, mode: dict[str, Any]) -> list[int]:
        """Continue `prompt` greedily by `tokens` tokens and return them.

        A model may also have `prepare(mode)`, called before the clock starts, and `facts`, a
        dictionary about its last generation.
        """


def serve(load: Callable[[dict[str, Any]], Model], packages: tuple[str, ...]) -> None:
    """Answer requests until stdin ends.

    Args:
        load: makes the model from the settings of the `load` request.
        packages: whose versions are reported.
    """
    _end_with_the_bench()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; stdout is for answers
    model: Model | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                model = load(request["settings"])
                answer: dict[str, Any] = {"versions": versions(packages)}
            elif model is None:
                raise RuntimeError("nothing is loaded yet")
            else:
                answer = _generate(model, request)
        except Exception as error:  # noqa: BLE001 (the other side decides what a failed row means)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _end_with_the_bench() -> None:
    """Ask the kernel to end this process with the bench, as a stopped process would stay for ever."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _generate(model: Model, request: dict[str, Any]) -> dict[str, Any]:
    prepare = getattr(model, "prepare", None)
    if prepare is not None:
        prepare(request["mode"])
    started = perf_counter()
    tokens = model.generate(request["prompt"], request["tokens"], request["mode"])
    seconds = perf_counter() - started
    return {
        "tokens": [int(token) for token in tokens],
        "seconds": seconds,
        "peak": peak_bytes(),
        "facts": getattr(model, "facts", {}),
    }


def peak_bytes() -> int:
    """Return the most resident memory that this process has had, as the kernel counts it (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed versions of `packages`."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
