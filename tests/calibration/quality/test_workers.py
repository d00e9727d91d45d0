"""Workers: the same results in this process and on Ray, and no job lost with a worker or a node."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cospec import errors
from cospec.calibration.journal import Journal
from cospec.calibration.quality import workers as module
from cospec.calibration.quality.measurement import run_modes
from cospec.calibration.quality.mode_runner import QualityConfig
from cospec.calibration.quality.modes import parse_modes
from cospec.calibration.quality.workers import Scale, Workers, run_missing
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.errors import BackendError, CospecError, MissingExtraError, UsageError

ray = pytest.importorskip("ray", reason="needs ray (extra cluster)")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


@dataclass(frozen=True)
class Setup:
    """State of a worker: a folder that all workers share. Refuses to start in some of them."""

    folder: Path

    def __call__(self) -> Path:
        (self.folder / f"started {os.getpid()}").touch()
        return self.folder


def square(folder: Path, item: int) -> tuple[int, int]:
    return item * item, os.getpid()


def meet(folder: Path, item: int) -> tuple[int, int]:
    """Wait until two workers are at work."""
    (folder / f"at work {os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("at work *"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return item * item, os.getpid()


def die_once(folder: Path, item: int) -> int:
    """Kill the worker at the items 3 and 7, the first time that they run."""
    if item in (3, 7) and not (folder / str(item)).exists():
        (folder / str(item)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def die_always(folder: Path, item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse(folder: Path, item: int) -> int:
    raise UsageError(f"item {item}", hint="a hint")


def fail_to_start() -> None:
    raise MissingExtraError("some-package", "some-extra", "Something")


def run(scale: Scale, function: Any, folder: Path, count: int = 12) -> list[Any]:
    with Workers(scale, Setup(folder)) as workers:
        return [result for _, result in sorted(workers.run(function, range(count)))]


TWO = Scale(processes=2)


def test_one_local_worker_is_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RayWorkers", None)
    assert run(Scale(), square, tmp_path) == [(i * i, os.getpid()) for i in range(12)]
    assert run(Scale(processes=1), square, tmp_path, 0) == []


def test_nothing_is_started_without_a_job(tmp_path):
    assert run(TWO, square, tmp_path, 0) == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True, scope="module")
def own_signals() -> Iterator[None]:
    """Nodes that are started in this process set a handler of SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A running Ray with room for two workers, which tests join, because a start takes seconds."""
    module._join(ray, TWO)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_workers")
def test_a_command_keeps_its_handler_of_sigterm():
    """Ray's own ends the process with another code than that of the signal."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("two_workers")
def test_both_workers_get_jobs_and_the_results_are_those_of_one_process(tmp_path):
    found = run(TWO, meet, tmp_path)
    assert [value for value, _ in found] == [i * i for i in range(12)]
    pids = {pid for _, pid in found}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.usefixtures("two_workers")
def test_the_jobs_of_a_killed_worker_run_again(tmp_path, capsys):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("4", 16)
    with Workers(TWO, Setup(tmp_path)) as workers:
        items = {str(i): i for i in range(12)}
        found = run_missing(workers, die_once, items, journal, "squares")
    assert found == [i * i for i in range(12)]
    assert len(list(tmp_path.glob("started *"))) >= 3, "each that died was replaced"
    assert Journal(tmp_path / "journal.jsonl").done == {str(i): i * i for i in range(12)}
    said = capsys.readouterr()
    assert said.out == "", "stdout belongs to the results"
    assert said.err.count("a worker was lost") == 2


@pytest.mark.usefixtures("two_workers")
def test_a_job_that_kills_every_worker_is_named_as_the_cause(tmp_path):
    with pytest.raises(BackendError, match="3 workers died, each with the same job"):
        run(TWO, die_always, tmp_path, 4)


@pytest.mark.usefixtures("two_workers")
def test_errors_arrive_as_what_they_are(tmp_path):
    with pytest.raises(UsageError, match="item") as caught:
        run(TWO, refuse, tmp_path)
    assert caught.value.hint == "a hint"
    with (
        pytest.raises(MissingExtraError, match="some-package"),
        Workers(TWO, fail_to_start) as some,
    ):
        list(some.run(square, range(3)))


@pytest.mark.usefixtures("two_workers")
def test_a_measurement_does_not_depend_on_its_workers(tiny_pair_bundle, tmp_path):
    """Two workers, one of them killed after three answers, and this process alone."""
    tasks, modes = tiny_tasks("validation", 16, seed=3), parse_modes(["strict", "random:0.3"])
    alone = run_modes(QualityConfig(tiny_pair_bundle), tasks, modes)
    journal = tmp_path / "answers.jsonl"
    killed: list[int] = []

    def kill() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if process.cmdline()[0].startswith("ray::_Worker"):
                process.kill()
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = run_modes(QualityConfig(tiny_pair_bundle, processes=2), tasks, modes, journal)
    killer.join()
    assert len(killed) == 1
    for mode in modes:
        pairs = zip(alone[mode.name], found[mode.name], strict=True)
        assert all(replace(one, seconds=0) == replace(other, seconds=0) for one, other in pairs)


def test_every_error_survives_pickling():
    kinds = [CospecError, *CospecError.__subclasses__(), MissingExtraError]
    for kind in kinds:
        error = (
            MissingExtraError("p", "e", "It") if kind is MissingExtraError else kind("m", hint="h")
        )
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.exit_code) == (kind, str(error), kind.exit_code)
    assert errors.PromptTooLongError in {*kinds, *errors.PromptError.__subclasses__()}


def test_without_ray_one_process_does_all_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert [pid for _, pid in run(TWO, square, tmp_path, 3)] == [os.getpid()] * 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "'ray', which is not installed. Running in one process." in line
    assert "cospec[cluster]" in line
    with pytest.raises(MissingExtraError, match="'ray'"):
        run(Scale(cluster="10.0.0.1:6379"), square, tmp_path)


def test_a_token_of_ray_is_found_where_ray_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
        assert not module._has_token()
        monkeypatch.setenv(name, "x")
        assert module._has_token()
        monkeypatch.delenv(name)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("x")
    assert module._has_token()


@pytest.mark.parametrize("name", ["processes", "threads"])
def test_fewer_than_one_is_refused(name):
    with pytest.raises(UsageError, match=f"--{name} is 0"):
        Scale(**{name: 0})


def sleep(state: tuple[Path, str], item: int) -> int:
    folder, node = state
    (folder / f"at {node} {item}").touch()
    time.sleep(0.5)
    return item * item


@dataclass(frozen=True)
class NodeSetup:
    folder: Path

    def __call__(self) -> tuple[Path, str]:
        return self.folder, ray.get_runtime_context().get_node_id()


def test_a_cluster_of_two_nodes_loses_one(tmp_path):
    """Two nodes on this machine, with room for one worker each; one is killed in the middle."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        found = {}
        scale = Scale(cluster=cluster.address)
        with Workers(scale, NodeSetup(tmp_path)) as workers:
            for i, result in workers.run(sleep, range(12)):
                found[i] = result
                nodes = {path.name.split()[1] for path in tmp_path.glob("at *")}
                if node is not None and len(nodes) == 2:
                    cluster.remove_node(node, allow_graceful=False)
                    node = None
        assert node is None, "both nodes had jobs"
        assert found == {i: i * i for i in range(12)}
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:70000", "[::1]:1", "no.invalid:1"])
def test_no_cluster_at_the_address(tmp_path, address):
    ray.shutdown()
    with pytest.raises(BackendError, match=f"no Ray cluster at '{re.escape(address)}'"):
        run(Scale(cluster=address), square, tmp_path)
