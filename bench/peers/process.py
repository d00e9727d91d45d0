"""A worker process in its runtime's environment; it answers one request at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"


class WorkerError(Exception):
    """A worker failed; the message is its own."""


@dataclass(frozen=True)
class Process:
    """What a worker process runs; rows with equal processes share one worker and its loaded models.

    Attributes:
        python: interpreter of its environment.
        worker: file name of its script.
        settings: of its `load` request.
    """

    python: Path
    worker: str
    settings: dict[str, Any] = field(hash=False)

    @property
    def key(self) -> str:
        """The same for equal processes."""
        return json.dumps([str(self.python), self.worker, self.settings], sort_keys=True)


@dataclass(frozen=True)
class Generated:
    """One answer of a worker.

    Attributes:
        tokens: that it generated.
        seconds: of the call.
        peak: bytes of its process.
        facts: about the generation.
    """

    tokens: list[int]
    seconds: float
    peak: int
    facts: dict[str, Any]


class Worker:
    """A running worker process, loaded.

    Args:
        process: what to run.

    Raises:
        WorkerError: it did not start or could not load.
    """

    def __init__(self, process: Process) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [str(process.python), str(WORKERS / process.worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            self.versions: dict[str, str] = self._ask(op="load", settings=process.settings)[
                "versions"
            ]
            self._pause()
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: Sequence[int], tokens: int, mode: dict[str, Any]) -> Generated:
        """Continue `prompt` by `tokens` tokens while all other workers are stopped.

        Raises:
            WorkerError: it failed or ended.
        """
        self._process.send_signal(signal.SIGCONT)
        answer = self._ask(op="generate", prompt=list(prompt), tokens=tokens, mode=mode)
        self._pause()
        return Generated(**answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def _pause(self) -> None:
        """Stop all its threads, so that none of them takes time from the other workers."""
        self._process.send_signal(signal.SIGSTOP)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended: {self._last_line()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(str(answer["error"]))
        return answer

    def _last_line(self) -> str:
        """Return the last line that it wrote on stderr."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1] if lines else "it wrote nothing"
