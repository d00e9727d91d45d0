"""The comparison with other runtimes, without any runtime: turns, figures, the pipe to a worker."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.peers import process
from bench.peers.__main__ import main
from bench.peers.environments import PreparationError, Workshop
from bench.peers.process import Generated, Process, Worker, WorkerError
from bench.peers.runtimes import Files, Settings, our_rows, peer_rows
from bench.peers.turns import Row, Samples, figures, measure_rows
from cospec.errors import UsageError

PEER = Process(Path("python"), "peer.py", {})
OURS = Process(Path("python"), "ours.py", {"bundle": "b"})
ROWS = [
    Row("cospec", 0, "", OURS),
    Row("cospec", 3, "", OURS),
    Row("peer", 0, "", PEER),
    Row("absent", 0, reason="pip failed"),
]
SETTINGS = Settings(2, 64, (2, 3))


class FakeWorker:
    """Takes 0.1 s for a prompt and a time per token that the draft length sets."""

    def __init__(self, process: Process, log: list[tuple[str, Any, int]], fails: bool) -> None:
        self.versions = {"fake": "1"}
        self.closed = False
        self._process, self._log, self._fails = process, log, fails

    def generate(self, prompt: Sequence[int], tokens: int, mode: dict[str, Any]) -> Generated:
        if self._fails:
            raise WorkerError("no memory")
        self._log.append((self._process.worker, mode["k"], tokens))
        seconds = 0.1 + 0.01 * tokens / (1 + mode["k"])
        output = [prompt[0] + i for i in range(tokens)]
        return Generated(output, seconds, 1000 * tokens, {"acceptance": 0.5})

    def close(self) -> None:
        self.closed = True


def measured(failing: str = "") -> tuple[list[Samples], list[Any]]:
    log: list[Any] = []
    started: list[FakeWorker] = []

    def start(each: Process) -> FakeWorker:
        started.append(FakeWorker(each, log, each.worker == failing))
        return started[-1]

    samples = measure_rows(ROWS, [[0], [10]], 20, start)
    assert started
    assert all(worker.closed for worker in started)
    return samples, log


def test_rows_take_turns_and_the_order_rotates():
    _, log = measured()
    whole = [(worker, k) for worker, k, tokens in log if tokens == 20]
    assert whole == [
        *(("ours.py", 0), ("ours.py", 3), ("peer.py", 0)),
        *(("ours.py", 3), ("peer.py", 0), ("ours.py", 0)),
    ]
    assert sorted(tokens for _, _, tokens in log[:3]) == [16, 16, 16]
    assert [tokens for _, _, tokens in log[3:5]] == [1, 20]


def test_figures_are_medians_and_ratios_within_a_round():
    samples, _ = measured()
    result = figures(ROWS, samples, "cospec")
    plain, drafted = result["rows"][:2]
    assert plain["tokens_per_second"] == pytest.approx(20 / 0.3)
    assert plain["decode_tokens_per_second"] == pytest.approx(19 / 0.19)
    assert plain["time_to_first_token_ms"] == pytest.approx(110)
    assert drafted["speedup"] == pytest.approx(0.3 / 0.15)
    assert drafted["equal_to_own_target"]
    assert drafted["acceptance"] == 0.5
    assert result["best"] == {"cospec": "cospec k=3", "peer": "peer target"}
    assert result["ratios"]["peer"]["tokens_per_second"] == pytest.approx(2.0)


def test_a_worker_that_fails_is_a_skipped_row_and_the_others_go_on():
    samples, log = measured(failing="peer.py")
    result = figures(ROWS, samples, "cospec")
    assert result["rows"][2]["skipped"] == "no memory"
    assert result["rows"][3]["skipped"] == "pip failed"
    assert sum(worker == "ours.py" and tokens == 20 for worker, _, tokens in log) == 4
    assert result["ratios"] == {}


def test_ours_is_timed_alone_at_every_length_and_with_auto():
    rows = our_rows(Files(Path("bundle")), SETTINGS)
    assert [row.k for row in rows] == [0, 2, 3, "auto"]
    assert len({row.process.key for row in rows if row.process}) == 1


def test_peers_without_their_files_are_refused(tmp_path):
    workshop = Workshop(tmp_path)
    for name, needed in (("llama.cpp", "--gguf"), ("onnxruntime-genai", "--checkpoint")):
        with pytest.raises(UsageError, match=needed):
            peer_rows(workshop, [name], Files(Path("bundle")), SETTINGS)
    with pytest.raises(UsageError, match="unknown peer 'vllm'"):
        peer_rows(workshop, ["vllm"], Files(Path("bundle")), SETTINGS)


def test_a_peer_that_cannot_be_installed_is_a_row_with_the_reason(tmp_path, monkeypatch):
    def fails(self: Workshop, name: str) -> Path:
        raise PreparationError("no matching distribution")

    monkeypatch.setattr(Workshop, "environment", fails)
    pair = (tmp_path / "a.gguf", tmp_path / "b.gguf")
    rows = peer_rows(Workshop(tmp_path), ["llama.cpp"], Files(tmp_path, gguf=pair), SETTINGS)
    assert [row.reason for row in rows] == ["no matching distribution"]


def test_files_are_made_once_and_appear_only_whole(tmp_path):
    workshop, made = Workshop(tmp_path), []

    def make(part: Path) -> None:
        made.append(part.name)
        part.write_text("half")
        if len(made) == 1:
            raise KeyboardInterrupt
        part.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        workshop.once(tmp_path / "file", "making", make)
    assert not (tmp_path / "file").exists()
    for _ in range(2):
        assert workshop.once(tmp_path / "file", "making", make).read_text() == "whole"
    assert len(made) == 2


WORKER = """
from worker_protocol import serve

class Model:
    def __init__(self, settings):
        if settings.get("broken"):
            raise RuntimeError("no such model")
        self.facts = {"acceptance": 0.25}

    def generate(self, prompt, tokens, mode):
        print("noise on stdout")
        return [prompt[0] + mode["k"]] * tokens

serve(Model, ("numpy",))
"""


@pytest.fixture
def worker_script(tmp_path, monkeypatch):
    protocol = (process.WORKERS / "worker_protocol.py").read_text()
    (tmp_path / "worker_protocol.py").write_text(protocol)
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(process, "WORKERS", tmp_path)
    return "worker.py"


def test_a_worker_answers_over_pipes_and_is_stopped_between_turns(worker_script):
    worker = Worker(Process(Path(sys.executable), worker_script, {}))
    try:
        assert "numpy" in worker.versions
        for k in (0, 3):
            answer = worker.generate([7], 2, {"k": k})
            assert answer.tokens == [7 + k] * 2
            assert answer.facts == {"acceptance": 0.25}
            assert answer.peak > 1_000_000
    finally:
        worker.close()


def test_a_worker_that_cannot_load_reports_its_error(worker_script):
    with pytest.raises(WorkerError, match="RuntimeError: no such model"):
        Worker(Process(Path(sys.executable), worker_script, {"broken": True}))


def test_a_worker_that_does_not_start_reports_its_last_line(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text("raise SystemExit('no runtime here')")
    monkeypatch.setattr(process, "WORKERS", tmp_path)
    with pytest.raises(WorkerError, match="the process ended: no runtime here"):
        Worker(Process(Path(sys.executable), "worker.py", {}))


def test_options_that_belong_together_are_refused_alone(tmp_path):
    file = tmp_path / "target.gguf"
    file.write_bytes(b"GGUF")
    (tmp_path / "cospec.json").write_text("{}")
    done = CliRunner().invoke(main, ["--engine-dir", str(tmp_path), "--gguf", str(file)])
    assert done.exit_code == 2
    assert "--gguf and --draft-gguf go together" in done.output
