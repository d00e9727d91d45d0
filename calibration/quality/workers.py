"""Running many jobs on workers that keep their engines: in this process, or on a Ray cluster.

Each worker is a Ray actor with engines and threads of its own. It gets its next job when it has
returned the last one, so a long list of jobs never fills the memory of the cluster. If a worker is
lost, its job goes back to the front of the queue and a new worker is started where there is room.
Jobs must not depend on the worker that runs them; then neither do the results.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ...errors import BackendError, CospecError, MissingExtraError, UsageError
from ..journal import Journal
from ..tasks.isolation import STRONGEST, Isolation

LOCAL = "local"

LOSSES_ALLOWED = 3
"""Workers that one job may lose before it is reported as the cause."""

PATIENCE_SECONDS = 60
"""Time without a worker after which a line says so."""

CONNECT_SECONDS = 10

OBJECT_STORE_BYTES = 80 << 20
"""Ray's least. Jobs and results are a few kilobytes, and travel in messages."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many workers there are, and where.

    Attributes:
        processes: worker processes. None is 1 on this machine, and on a cluster as many as its CPUs
            allow.
        threads: threads of each worker's engines.
        cluster: `local` for this machine, or the address of a Ray cluster, such as `10.0.0.1:6379`.
        sandbox_level: the weakest isolation that code written by a model may run in.
    """

    processes: int | None = None
    threads: int = 1
    cluster: str = LOCAL
    sandbox_level: Isolation = STRONGEST

    def __post_init__(self) -> None:
        for name in ("processes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}, but must be at least 1")


class _Workers(Protocol):
    def results(self, function: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]: ...

    def close(self) -> None: ...


class Workers:
    """Workers that are started for the first job and end with the `with` block.

    Args:
        scale: how many, and where. One local worker is this process; more than one need Ray.
        setup: makes the state that each worker passes to its jobs; picklable.
    """

    def __init__(self, scale: Scale, setup: Callable[[], Any]) -> None:
        self._scale = scale
        self._setup = setup
        self._workers: _Workers | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.close()

    def run(
        self,
        function: Callable[[Any, Any], Any],
        items: Sequence[Any],
        label: str = "",
        done: int = 0,
        describe: Callable[[Any], str] = lambda result: "",
    ) -> Iterator[tuple[int, Any]]:
        """Yield `(i, function(state, items[i]))` for every item, as the results arrive.

        Args:
            function: the job; picklable.
            items: one for each job; picklable.
            label: name of the progress bar, which shows the time left on a terminal.
            done: jobs that were finished before, for the bar.
            describe: called with each result; the bar shows the text that it returns.

        Raises:
            BackendError: one job loses its worker again and again, or no worker can be started.
            CospecError: what a job raised.
        """
        from tqdm import tqdm

        if not items:
            return
        if self._workers is None:
            self._workers = _start(self._scale, self._setup)
        with tqdm(
            total=len(items) + done,
            initial=done,
            desc=label,
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar:
            for i, result in self._workers.results(function, items):
                yield i, result
                bar.set_postfix_str(describe(result), refresh=False)
                bar.update()


def run_missing(
    workers: Workers,
    function: Callable[[Any, Any], Any],
    items: Mapping[str, Any],
    journal: Journal,
    label: str,
    describe: Callable[[Any], str] = lambda record: "",
) -> list[Any]:
    """Run the jobs whose keys the journal lacks; return the records of all in the order of `items`."""
    keys = [key for key in items if key not in journal.done]
    missing = [items[key] for key in keys]
    results = workers.run(function, missing, label, len(items) - len(missing), describe)
    for i, record in results:
        journal.write(keys[i], record)
    return [journal.done[key] for key in items]


def _start(scale: Scale, setup: Callable[[], Any]) -> _Workers:
    if scale.cluster == LOCAL and scale.processes in (None, 1):
        return _ThisProcess(setup)
    if find_spec("ray") is not None:
        return _RayWorkers(scale, setup)
    missing = MissingExtraError("ray", "cluster", "Running on several processes")
    if scale.cluster != LOCAL:
        raise missing
    _notice(f"{missing.message} Running in one process. ({missing.hint})")
    return _ThisProcess(setup)


def _notice(line: str) -> None:
    """Print a line on stderr, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


class _ThisProcess:
    """One worker: the calling process."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        self._state = setup()

    def results(self, function: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for i, item in enumerate(items):
            yield i, function(self._state, item)

    def close(self) -> None:
        self._state = None


class _Worker:
    """What runs in a worker's process."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        self._setup = setup
        self._state: Any = None

    def start(self) -> None:
        """Load the engines: a call of its own, so that its error arrives as what it is."""
        self._state = self._setup()

    def run(self, function: Callable[[Any, Any], Any], item: Any) -> Any:
        return function(self._state, item)


class _RayWorkers:
    """Actors of a Ray cluster.

    Ray could restart actors and repeat their calls by itself. But then the calls of an actor for
    which the cluster has no room any more would wait forever, while other workers are idle.
    """

    def __init__(self, scale: Scale, setup: Callable[[], Any]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
        if scale.cluster != LOCAL and _has_token():  # a cluster that needs none ignores it
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning of Ray's
        import ray

        self._ray = ray
        self._joined = not ray.is_initialized()
        if self._joined:
            _join(ray, scale)
        cpus = int(ray.cluster_resources().get("CPU", 0))
        count = scale.processes or cpus // scale.threads
        if cpus < scale.threads:
            raise UsageError(
                f"a worker needs {scale.threads} CPUs, and the cluster has {cpus}",
                hint="give fewer --threads, or add nodes to the cluster",
            )
        self._setup = ray.put(setup)
        self._actor = ray.remote(_Worker).options(
            num_cpus=scale.threads, scheduling_strategy="SPREAD"
        )
        self._idle: deque[Any] = deque()
        self._running: dict[Any, tuple[Any, int | None]] = {}
        """What each call of an actor does: the actor, and the job's index or None while it starts."""
        for _ in range(count):
            self._add()

    def results(self, function: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        waiting = deque(range(len(items)))
        losses: Counter[int | None] = Counter()
        left = len(items)
        while left:
            while waiting and self._idle:
                actor, i = self._idle.popleft(), waiting.popleft()
                self._running[actor.run.remote(function, items[i])] = (actor, i)
            call = self._next()
            actor, job = self._running.pop(call)
            try:
                result = self._get(call)
            except self._ray.exceptions.RayActorError as error:
                losses[job] += 1
                if losses[job] >= LOSSES_ALLOWED:
                    what = "while it loaded the engines" if job is None else "with the same job"
                    raise BackendError(
                        f"{LOSSES_ALLOWED} workers died, each {what}: {error}",
                        hint="if memory ran out, use fewer --processes; the same command continues",
                    ) from error
                _notice("a worker was lost; its job runs again on another")
                self._ray.kill(actor)
                self._add()
                if job is not None:
                    waiting.appendleft(job)
                continue
            self._idle.append(actor)
            if job is None:
                losses[None] = 0
            else:
                left -= 1
                yield job, result

    def close(self) -> None:
        for actor in {*self._idle, *(actor for actor, _ in self._running.values())}:
            self._ray.kill(actor)
        if self._joined:
            self._ray.shutdown()

    def _next(self) -> Any:
        """Wait for a call to return."""
        while True:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=PATIENCE_SECONDS)
            if ready:
                return ready[0]
            if all(job is None for _, job in self._running.values()):
                _notice("still waiting for the cluster to start a worker")

    def _get(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CospecError):
                raise error.cause from None
            raise

    def _add(self) -> None:
        """Start a worker: now, or when the cluster has room for it."""
        actor = self._actor.remote(self._setup)
        self._running[actor.start.remote()] = (actor, None)


def _has_token() -> bool:
    """Whether Ray's authentication token is on this machine."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces: commands raise the signal and clean up."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@_own_signals()
def _join(ray: Any, scale: Scale) -> None:
    """Connect to the cluster, or start one of this machine alone that ends with this process."""
    # Ray reports lost workers on stdout, which belongs to the results.
    ray._private.worker._worker_logs_enabled = False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if scale.cluster == LOCAL:
        ray.init(
            address=LOCAL,
            num_cpus=(scale.processes or 1) * scale.threads,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    try:
        host, _, port = scale.cluster.rpartition(":")
        if port.isdecimal() and "/" not in host:  # Ray would try an address for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=scale.cluster, **quiet)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise BackendError(
            f"no Ray cluster at '{scale.cluster}': {error}",
            hint="start one with: ray start --head; its token must be in ~/.ray/auth_token here too",
        ) from error
