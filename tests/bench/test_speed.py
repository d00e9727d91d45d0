"""The speed bench without any runtime: turns, sums, tables, the pipe to a worker, what is refused."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from cospec.bench.speed import prepare, remote
from cospec.bench.speed.bandwidth import ReadSpeed, streamed_bytes
from cospec.bench.speed.context import at_context
from cospec.bench.speed.measure import (
    Row,
    Samples,
    common_prefix,
    distinct,
    measure_rows,
    merged_facts,
    paired_ratio,
    turns,
)
from cospec.bench.speed.peer_formats import PairFormat, both, parse_formats, target_of
from cospec.bench.speed.peers import OUR_DRAFT_LENGTHS, PEERS, our_rows, parse_peers, peer_rows
from cospec.bench.speed.prepare import Pair, PreparationError, Workshop
from cospec.bench.speed.remote import Generated, Process, Worker, WorkerError
from cospec.bench.speed.speed import SpeedConfig, measure_speed
from cospec.bench.speed.speed_report import as_markdown
from cospec.bench.speed.speed_summary import best_of_each, best_ratios, summarise
from cospec.bench.speed.sweep import controller_quality, plot_sweep
from cospec.calibration.quality.cli import main
from cospec.errors import UsageError

PEER = Process(Path("python"), "peer.py", {})
OURS = Process(Path("python"), "ours.py", {"bundle": "b"})


class FakeWorker:
    """Takes 0.1 s for a prompt and, by draft length, a time for each token."""

    turns: list[tuple[str, int, int]]

    def __init__(self, process: Process, log: list[tuple[str, Any, int]], fails: bool) -> None:
        self.versions = {"fake": "1"}
        self.closed = False
        self._process, self._log, self._fails = process, log, fails

    def generate(self, prompt: Sequence[int], tokens: int, mode: dict[str, Any]) -> Generated:
        if self._fails:
            raise WorkerError("no memory")
        self._log.append((self._process.worker, mode["k"], tokens))
        seconds = 0.1 + 0.01 * tokens / (1 + (mode["k"] or 0))
        output = [prompt[0] + i for i in range(tokens)]
        return Generated(output, seconds, 1000 * tokens, {"acceptance": 0.5, "other": None})

    def close(self) -> None:
        self.closed = True


def play(rows: list[Row], rounds: int = 2, failing: str = "") -> tuple[list[Samples], list[Any]]:
    log: list[Any] = []
    started: list[FakeWorker] = []

    def start(process: Process) -> FakeWorker:
        started.append(FakeWorker(process, log, process.worker == failing))
        return started[-1]

    samples = measure_rows(rows, [[10 * i] for i in range(rounds)], 20, start)
    assert all(worker.closed for worker in started)
    return samples, log


ROWS = [
    Row("cospec", "fp32", 0, "own pools", OURS),
    Row("cospec", "fp32", 3, "own pools", OURS),
    Row("peer", "fp32", 0, "", PEER),
    Row("absent", "fp32", 0, reason="pip failed"),
]


def test_rows_take_turns_and_the_order_rotates():
    assert [turns(3, number) for number in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    _, log = play(ROWS)
    whole = [(worker, k) for worker, k, tokens in log if tokens == 20]
    assert whole == [
        *(("ours.py", 0), ("ours.py", 3), ("peer.py", 0)),
        *(("ours.py", 3), ("peer.py", 0), ("ours.py", 0)),
    ]
    assert [tokens for _, _, tokens in log[:3]] == [16, 16, 16]  # the warm-up
    assert [tokens for _, _, tokens in log[3:5]] == [1, 20]


def test_a_row_holds_rates_first_token_memory_and_facts():
    samples, _ = play(ROWS)
    assert samples[0].rates == pytest.approx([20 / 0.3] * 2)
    assert samples[0].first == pytest.approx([0.11] * 2)
    assert samples[0].decode_rates == pytest.approx([100.0] * 2)
    assert samples[0].peak == 20000
    figures = summarise(ROWS, samples)
    assert figures[1]["speedup"] == pytest.approx(0.3 / 0.15)
    assert figures[1]["acceptance"] == 0.5
    assert "other" not in figures[1]
    assert figures[1]["equal_to_own_target"]
    assert figures[2]["equal_to_ours"]
    assert figures[2]["tokens_equal_to_ours"] == 20


def test_a_worker_that_fails_is_a_skipped_row_and_the_others_go_on():
    samples, log = play(ROWS, failing="peer.py")
    figures = summarise(ROWS, samples)
    assert figures[2]["skipped"] == "no memory"
    assert figures[3]["skipped"] == "pip failed"
    assert sum(worker == "ours.py" and tokens == 20 for worker, _, tokens in log) == 4
    assert best_ratios(figures) == {"by_format": {}, "by_target_format": {}, "overall": {}}
    assert best_of_each(figures)["overall"].keys() == {"cospec"}


def test_rows_that_share_a_process_share_its_worker():
    same, other = Process(Path("p"), "w", {"a": 1}), Process(Path("p"), "w", {"a": 2})
    assert same.key == Process(Path("p"), "w", {"a": 1}).key != other.key


def test_the_best_of_ours_is_set_against_the_best_peer():
    samples, _ = play(ROWS)
    ratios = best_ratios(summarise(ROWS, samples))
    assert ratios["by_format"]["fp32"]["ratio"] == pytest.approx(2.0)
    assert "speculative k=3" in ratios["by_format"]["fp32"]["ours"]
    assert ratios["overall"]["best_peer"] == "peer fp32 target"


FASTER = Process(Path("python"), "ours.py", {"bundle": "mixed"})
MIXED_ROWS = [
    *ROWS,
    Row("cospec", "fp32+int4", 7, "own pools", FASTER),
    Row("cospec", "int4", 0, "own pools", FASTER),
    Row("peer", "fp32+int4", 1, "", PEER),
    Row("peer", "int4", 15, "", PEER),
]


def test_mixed_formats_are_summed_up_by_format_by_the_targets_and_overall():
    samples, _ = play(MIXED_ROWS)
    figures = summarise(MIXED_ROWS, samples)
    # The plain row of a mixed format is that of its target's.
    assert figures[4]["speedup"] == pytest.approx(0.3 / 0.125)
    assert figures[4]["equal_to_own_target"]
    ratios = best_ratios(figures)
    found = {text: ratio["ratio"] for text, ratio in ratios["by_format"].items()}
    assert found == pytest.approx(
        {"fp32": 0.3 / 0.15, "fp32+int4": 0.2 / 0.125, "int4": 0.1125 / 0.3}
    )
    # Over all drafts of an fp32 target, ours with the int4 draft against the peer's with it.
    over_drafts = ratios["by_target_format"]["fp32"]
    assert over_drafts["ratio"] == pytest.approx(0.2 / 0.125)
    assert over_drafts["ours"] == "cospec fp32+int4 speculative k=7, own pools"
    assert over_drafts["best_peer"] == "peer fp32+int4 speculative k=1"
    assert ratios["by_target_format"]["int4"] == ratios["by_format"]["int4"]
    assert ratios["overall"]["ratio"] == pytest.approx(0.1125 / 0.125)
    best = best_of_each(figures)
    assert {name: row["format"] for name, row in best["overall"].items()} == {
        **{"cospec": "fp32+int4", "peer": "int4"}
    }
    assert best["by_target_format"]["fp32"]["peer"]["tokens_per_second"] == pytest.approx(20 / 0.2)


def test_the_target_alone_counts_in_every_format_that_has_it():
    """A runtime whose drafts do not pay is at its best without one."""
    rows = [MIXED_ROWS[2], MIXED_ROWS[4]]
    ratios = best_ratios(summarise(rows, play(rows)[0]))
    assert ratios["by_format"].keys() == {"fp32+int4"}
    assert ratios["by_format"]["fp32+int4"]["best_peer"] == "peer fp32 target"


def test_the_target_alone_is_played_once_whatever_the_drafts(tmp_path):
    rows = [
        *our_rows(tmp_path / "a", both("fp32"), 2, (3,)),
        *our_rows(tmp_path / "b", PairFormat("fp32", "int4"), 2, (3,)),
    ]
    kept = distinct(rows)
    assert [(row.format, row.k) for row in kept] == [
        *(("fp32", 0), ("fp32", 3), ("fp32", 0), ("fp32", 3)),
        *(("fp32+int4", 3), ("fp32+int4", 3)),
    ]
    assert kept[0].process == rows[0].process


def result() -> dict[str, Any]:
    samples, _ = play(ROWS)
    figures = summarise(ROWS, samples)
    form = {
        "streamed_bytes": 672_000_000,
        "target_only_tokens_per_second": 60.0,
        "share_reached_by_our_target": 0.96,
    }
    return {
        "rows": figures,
        "bounds": {"read_bytes_per_second": 4e10, "formats": {"fp32": form}},
        "best": best_of_each(figures),
        "ratios": best_ratios(figures),
        "environment": {
            **{"cpu": "some CPU", "threads": 2, "rounds": 2, "tokens": 20},
            **{"load_before": 0.1, "load_after": 1.9},
        },
    }


def test_the_table_names_rows_bounds_ratios_and_what_was_skipped():
    text = as_markdown(result())
    assert "| cospec  | fp32    | speculative k=3 | own pools |" in text
    assert "SKIPPED: absent fp32 target: pip failed" in text
    assert "ours decodes at 96% of it" in text
    assert "fp32: cospec fp32 speculative k=3, own pools is 2.00 times peer fp32 target" in text
    assert "| best tok/s with a target in | cospec " in text
    for title in ("fp32", "any"):
        cells = f"| {title:27} | 133.3 (fp32 speculative k=3) | 66.7 (fp32 target) |"
        assert cells in text
    json.dumps(result())


def test_ratios_are_medians_of_the_rounds_own_ratios():
    assert paired_ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert merged_facts([{"a": 1.0}, {"a": None, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}


WORKER = """
from worker_protocol import serve
class Echo:
    def __init__(self, settings):
        self.settings, self.facts, self.k = settings, {}, None
        print("libraries print where they like")
    def prepare(self, mode):
        self.k = mode["k"]
    def generate(self, prompt, tokens, mode):
        if tokens > 50:
            raise ValueError("too many\\nfor me")
        self.facts = {"k": self.k}
        return (prompt * tokens)[:tokens]
serve(Echo, ("numpy", "no-such-package"))
"""


@pytest.fixture
def echo(tmp_path, monkeypatch) -> Process:
    (tmp_path / "echo.py").write_text(WORKER)
    (tmp_path / "worker_protocol.py").write_text(
        (remote.WORKERS / "worker_protocol.py").read_text()
    )
    monkeypatch.setattr(remote, "WORKERS", tmp_path)
    return Process(Path(sys.executable), "echo.py", {"a": 1})


def test_a_worker_answers_over_its_pipe_and_survives_an_error(echo):
    worker = Worker(echo)
    try:
        assert worker.versions == {"numpy": np.__version__}
        answer = worker.generate([7, 8], 3, {"k": 2})
        assert answer.tokens == [7, 8, 7]
        assert answer.facts == {"k": 2}
        assert answer.seconds > 0
        assert answer.peak > 1_000_000
        with pytest.raises(WorkerError, match="ValueError: too many"):
            worker.generate([1], 51, {"k": 0})
        assert worker.generate([1], 1, {"k": 0}).tokens == [1]
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_its_last_words(echo, tmp_path):
    (tmp_path / "echo.py").write_text("raise SystemExit('there is no such library')")
    with pytest.raises(WorkerError, match="no such library"):
        Worker(echo)


def test_what_is_prepared_is_made_once_and_whole_or_not_at_all(tmp_path):
    said: list[str] = []
    workshop = Workshop(tmp_path, said.append)

    def fails(part: Path) -> None:
        part.mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        workshop.once(workshop.root / "a" / "b", "making b", fails)
    assert not (tmp_path / "a" / "b").exists()
    for _ in range(2):
        made = workshop.once(workshop.root / "a" / "b", "making b", lambda part: part.mkdir())
    assert made.is_dir()
    assert said == ["making b", "making b"]


@pytest.fixture
def makes_bundles(tmp_path, monkeypatch) -> list[str]:
    """What was exported and converted, in a workshop whose bundles are empty folders."""
    made: list[str] = []

    def export(pair: Pair, output: Path, capacity: int) -> None:
        made.append(f"exported {capacity}")
        output.mkdir()

    def convert(bundle: Path, output: Path, weights: PairFormat) -> None:
        made.append(f"{bundle.name} -> {weights}")
        output.mkdir()

    monkeypatch.setattr(prepare, "_export", export)
    monkeypatch.setattr(prepare, "_convert", convert)
    return made


def test_a_bundle_is_of_one_version_of_what_makes_it(tmp_path, monkeypatch, makes_bundles):
    workshop, pair = Workshop(tmp_path), Pair(tmp_path, "p")
    bundles = tmp_path / "bundles"
    for name in ("p-64-int4", "p-64-fp32-0123456789abcdef", "p-128-fp32", "q-64-fp32"):
        (bundles / name).mkdir(parents=True)
    monkeypatch.setattr(prepare, "sources_digest", lambda: "a" * 16)
    for weights in ("fp32", "int4", "int4-128", "fp32+int4", "int4"):
        folder = workshop.bundle(pair, *parse_formats(weights), 64)
        assert folder == bundles / f"p-64-{weights}-{'a' * 16}"
    source = f"p-64-fp32-{'a' * 16}"
    assert makes_bundles == [
        *("exported 64", f"{source} -> int4", f"{source} -> int4-128", f"{source} -> fp32+int4")
    ]
    monkeypatch.setattr(prepare, "sources_digest", lambda: "b" * 16)
    workshop.bundle(pair, both("int4"), 64)
    assert len(makes_bundles) == 6
    # Those of other formats stay until they are asked for, and so do other capacities and pairs.
    assert {folder.name for folder in bundles.iterdir()} == {
        *(f"p-64-{weights}-{'b' * 16}" for weights in ("fp32", "int4")),
        *(f"p-64-{weights}-{'a' * 16}" for weights in ("int4-128", "fp32+int4")),
        *("p-128-fp32", "q-64-fp32"),
    }


def test_the_version_of_what_makes_bundles_is_that_of_its_sources(tmp_path, monkeypatch):
    for name in prepare.BUNDLE_SOURCES:
        assert (prepare.PACKAGE / name / "__init__.py").is_file()
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.py").write_text("one")
    monkeypatch.setattr(prepare, "PACKAGE", tmp_path)
    found = set()
    for change in (
        lambda: None,
        lambda: (tmp_path / "export/a.py").write_text("two"),
        lambda: (tmp_path / "models/a.py").rename(tmp_path / "models/b.py"),
        lambda: (tmp_path / "calibration/weights/c.py").write_text(""),
    ):
        change()
        prepare.sources_digest.cache_clear()
        found.add(prepare.sources_digest())
    (tmp_path / "models/notes.txt").write_text("no source")
    prepare.sources_digest.cache_clear()
    found.add(prepare.sources_digest())
    prepare.sources_digest.cache_clear()
    assert len(found) == 4
    assert all(len(each) == 16 for each in found)


def test_a_peer_that_cannot_be_had_is_a_row_with_the_reason(tmp_path, monkeypatch):
    def environment(self: Workshop, name: str) -> Path:
        raise PreparationError("no matching distribution")

    monkeypatch.setattr(prepare.Workshop, "environment", environment)
    rows = peer_rows(
        Workshop(tmp_path),
        Pair(tmp_path, "p"),
        ["transformers", "onnxruntime-genai"],
        parse_formats("fp32+int4-128, int8-rows, fp32+int8-rows"),
        *(2, 64),
    )
    assert [(row.name, row.format, row.reason) for row in rows] == [
        ("onnxruntime-genai", "fp32+int4-128", "no matching distribution")
    ]


@pytest.fixture
def converted(monkeypatch) -> list[str]:
    """The commands of converters, which make no more than what is looked at."""
    commands: list[str] = []

    def run(command: list[str | Path]) -> None:
        words = [str(word) for word in command]
        part = Path(words[words.index("-o") + 1] if "-o" in words else words[-1])
        part.mkdir()
        config = {"model": {"decoder": {"session_options": {}}}, "search": {}}
        (part / "genai_config.json").write_text(json.dumps(config))
        (part / "model.onnx").write_text(" ".join(words))
        commands.append(" ".join(words))

    monkeypatch.setattr(Workshop, "environment", lambda self, name: Path("env/bin/python"))
    monkeypatch.setattr("cospec.bench.speed.peers.run", run)
    monkeypatch.setattr(
        "cospec.bench.speed.llama_file.write_gguf",
        lambda checkpoint, path, kind: path.write_text(f"{checkpoint.name} {kind}"),
    )
    return commands


def rows_of(root: Path, name: str, text: str) -> list[Row]:
    (weights,) = parse_formats(text)
    rows = PEERS[name].rows(Workshop(root), Pair(root / "pair", "p"), weights, 2, 64)
    assert {row.format for row in rows if row.k == 0} == {weights.target}
    assert {row.format for row in rows if row.k != 0} == {text}
    return rows


@pytest.mark.parametrize(
    ("text", "models", "options"),
    [
        ("fp32", ("fp32", "fp32"), ("-p fp32", "-p fp32")),
        ("fp32+int4-128", ("fp32", "int4-128"), ("-p fp32", "int4 --extra_options block_size=128")),
        (
            "int8-weights+int4",
            ("int8-128", "int4"),
            ("-p int8 --extra_options block_size=128", "4"),
        ),
    ],
)
def test_genai_has_each_model_in_its_own_format(tmp_path, converted, text, models, options):
    rows = rows_of(tmp_path, "onnxruntime-genai", text)
    base = tmp_path / "onnxruntime-genai"
    together = "+".join(dict.fromkeys(models))
    waiting = ("as-it-comes", "no-spinning", "spinning-briefly")
    assert {folder.name for folder in base.iterdir()} == {
        *(f"p-{models[0]}-target", f"p-{models[1]}-draft"),
        *(f"p-{models[0]}-64-2-{how}-target" for how in waiting),
        *(f"p-{together}-64-2-{how}-speculative" for how in waiting),
    }
    for command, role, end in zip(converted, ("target", "draft"), options, strict=True):
        assert f"-i {tmp_path / 'pair' / role} " in command
        assert command.endswith(end)
    folders = {row.process.settings["folder"] for row in rows if row.process and row.k}
    for folder in map(Path, folders):
        assert f"-i {tmp_path / 'pair/target'}" in (folder / "model.onnx").read_text()
        assert f"-i {tmp_path / 'pair/draft'}" in (folder / "draft/model.onnx").read_text()


def test_openvino_has_each_model_in_its_own_format(tmp_path, converted):
    rows = rows_of(tmp_path, "openvino-genai", "fp32+int4-128")
    assert [row.process.settings["exact"] for row in rows if row.process][-1] == {
        **{"target": True, "draft": False}
    }
    rows_of(tmp_path, "openvino-genai", "int4+int8")
    assert {folder.name for folder in (tmp_path / "openvino-genai").iterdir()} == {
        *("p-fp32-target", "p-int4-draft", "p-int4-32-target", "p-int8-draft")
    }
    assert ["--group-size 32" in command for command in converted] == [False, False, True, False]


def test_llama_has_each_model_in_its_own_format(tmp_path, converted):
    rows = rows_of(tmp_path, "llama.cpp", "int8+int4")
    settings = rows[0].process.settings if rows[0].process else {}
    assert Path(settings["target"]).read_text() == "target Q8_0"
    assert Path(settings["draft"]).read_text() == "draft Q4_0"
    assert not PEERS["llama.cpp"].has(PairFormat("fp32", "int4-128"))


def test_our_rows_are_every_draft_length_with_both_kinds_of_pools(tmp_path):
    rows = our_rows(tmp_path, both("fp32"), 2)
    assert len(rows) == 2 * (1 + len(OUR_DRAFT_LENGTHS)) == 20
    assert {row.setting for row in rows} == {"own pools", "shared pool"}
    assert [row.mode for row in rows[:2]] == ["target", "speculative k=1"]
    assert rows[9].mode == "speculative auto"


def test_streamed_weights_are_all_but_what_is_gathered(tmp_path):
    def weight(name: str, *dims: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.zeros(dims, np.float32), name)

    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "head"], ["y"]),
        helper.make_node("Gather", ["tied", "ids"], ["z"]),
        helper.make_node("MatMul", ["x", "tied"], ["w"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight("embedding", 100, 4), weight("head", 4, 10), weight("tied", 4, 5)],
    )
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    assert streamed_bytes(tmp_path / "g.onnx") == 4 * (40 + 20)


def test_reading_is_measured_each_time_it_is_asked_for():
    reading = ReadSpeed(2, buffer_bytes=1 << 16)
    reading.take()
    reading.take()
    assert len(reading.samples) == 2
    assert min(reading.samples) > 0


def test_a_context_is_summed_up():
    played = Samples(rates=[1.0] * 2, decode_rates=[10, 12], first=[1, 3])
    figures = at_context([ROWS[0], ROWS[3]], [played, Samples(error="pip failed")], 100)
    assert [figure["context"] for figure in figures] == [100, 100]
    assert figures[0]["tokens_per_second"] == 11
    assert figures[0]["prefill_tokens_per_second"] == 50
    assert figures[1]["skipped"] == "pip failed"


def swept() -> list[dict[str, Any]]:
    rows = [
        {
            "k": k,
            "setting": "own pools",
            "tokens_per_second": rate,
            "tokens_per_second_by_round": [rate, rate / 2],
        }
        for k, rate in ((0, 10.0), (1, 14.0), (2, 16.0), ("auto", 15.0))
    ]
    return [
        {
            **{"acceptance": acceptance, "rows": rows},
            **{"bound_tokens_per_second": 30.0, "bound_target_only": 12.0},
        }
        for acceptance in (0.8, 0.2)
    ]


def test_the_guard_is_judged_against_the_target_and_the_best_fixed_length():
    quality = controller_quality(swept()[0]["rows"])
    assert quality["own pools"] == {
        "of_target_only": pytest.approx(1.5),
        "of_best_fixed": pytest.approx(15 / 16),
    }


def test_a_plot_is_drawn(tmp_path):
    plot_sweep(swept(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle": Path("x"), "peers": ("transformers",)}, "peers need checkpoints"),
        ({"noise": -1.0}, "at least 0"),
        ({"noise": math.nan}, "at least 0"),
        ({"tokens": 4000}, "do not fit"),
    ],
)
def test_settings_that_make_no_measurement_are_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        measure_speed(SpeedConfig(tmp_path, **changes))


def test_formats_are_of_both_models_or_of_each():
    formats = parse_formats("int8, fp32+int4-128,fp32+fp32,fp32, int8-rows + int4")
    assert [str(weights) for weights in formats] == [
        *("int8", "fp32+int4-128", "fp32", "int8-rows+int4")
    ]
    assert formats[1] == PairFormat("fp32", "int4-128")
    assert [target_of(str(weights)) for weights in formats] == ["int8", "fp32", "fp32", "int8-rows"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int3", "unknown format 'int3'"),
        ("fp32,fp32+int3", "unknown format 'int3'"),
        ("fp16", "unknown format 'fp16'"),
        ("fp32+", "unknown format ''"),
        ("fp32+int8+int4", "'fp32.int8.int4' names 3 formats"),
        (" , ", "at least one format"),
    ],
)
def test_other_formats_are_refused(text, said):
    with pytest.raises(UsageError, match=said) as refused:
        parse_formats(text)
    assert "int4-128; TARGET+DRAFT" in (refused.value.hint or "")


def test_unknown_peers_are_refused():
    assert parse_peers("none") == []
    assert parse_peers("llama.cpp, transformers") == ["llama.cpp", "transformers"]
    with pytest.raises(UsageError, match="unknown peer 'vllm'"):
        parse_peers("transformers,vllm")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speed"], "either --pair controlled or --engine-dir"),
        (["speed", "--pair", "controlled", "--engine-dir", "x"], "either --pair"),
        (["speed", "--pair", "controlled", "--tokens", "1"], "--tokens is 1"),
        (["speed", "--pair", "controlled", "--prompt", "x"], "--prompt is for"),
        (["speed", "--pair", "controlled", "--formats", "fp32+int3"], "unknown format 'int3'"),
        (["speed", "--engine-dir", "x", "--plot", "y.png"], "--plot draws"),
        (
            ["speed", "--pair", "controlled", "--plot", "y.png", "--draft-lengths", "2,auto"],
            "--plot needs the draft length 1",
        ),
        (["speed", "--pair", "controlled", "--draft-lengths", "3,9"], "'9' is neither auto"),
        (["context", "--contexts", "1,a"], "no list of numbers"),
        (["project", "--measured", __file__], "either --engine-dir"),
        (["project", "--measured", __file__, "--target-gb", "1"], "either --engine-dir"),
    ],
)
def test_commands_refuse_what_makes_no_sense(arguments, said):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_the_group_lists_all_commands():
    done = CliRunner().invoke(main, ["--help"])
    for name in ("context", "project", "quality", "speed"):
        assert f"\n  {name} " in done.output
