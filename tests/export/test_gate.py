"""The gate refuses graphs that are wrong in small ways, and says which, where and by how much."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from factories import SLIDING_WINDOW
from numpy.typing import NDArray

from cospec.errors import CheckpointError, GateError
from cospec.export import attention, gate, graph
from cospec.export import probes as gate_probes
from cospec.export.attention import Lowering
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions
from cospec.runtime.engines.protocol import GraphShape, StepOutput

CAPACITY, VOCAB, WIDEST, TOP = 96, 320, 4, 8
# role, step and size, as in "draft graph, decode of 1 tokens at 31: a logit differs by 0.3, ..."
STEP = r"draft graph, (prefill chunk|decode|verify|verify after a jump) of \d+ tokens at \d+: "
DIFFERS = STEP + r"a logit differs from transformers by [\d.e-]+, [\d.e-]+ of the largest logit"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def module_of(checkpoint_of: Callable[..., Path]) -> Callable[[str], Any]:
    """One-layer modules, each loaded once."""
    loaded: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in loaded:
            folder = checkpoint_of(family, layers=1)
            loaded[family] = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
        return loaded[family]

    return get


@pytest.fixture(scope="module")
def mistral(module_of) -> Any:
    return module_of("mistral")


@pytest.fixture(scope="module")
def probes(mistral) -> list[gate_probes.Probe]:
    return reference(mistral)


@pytest.fixture(scope="module")
def healthy(mistral, tmp_path_factory) -> Path:
    """A graph that passes; copy it to break it."""
    return write(mistral, "portable", tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def copy(healthy, tmp_path) -> Path:
    shutil.copytree(healthy, tmp_path / "copy")
    return tmp_path / "copy"


def reference(module: Any) -> list[gate_probes.Probe]:
    return gate_probes.reference(module, CAPACITY, VOCAB, WIDEST, [SLIDING_WINDOW])


def write(module: Any, lowering: Lowering, folder: Path) -> Path:
    graph.write(graph.trace(module, lowering, CAPACITY, VOCAB), folder / "model.onnx")
    return folder


def check(folder: Path, module: Any, probes: Sequence[gate_probes.Probe]) -> gate.GateReport:
    shapes = tuple(graph.kv_shapes(module))
    hidden = module.config.hidden_size
    shape = GraphShape(CAPACITY, VOCAB, hidden, TOP, shapes, "float32")
    engine = OrtEngine(folder / "model.onnx", shape, OrtOptions(provider="cpu"))
    return gate.check(engine, probes, "fp32", "draft")


# What a report says.


def test_a_right_graph_passes_with_a_plausible_report(healthy, mistral, probes):
    report = check(healthy, mistral, probes)
    assert 0 < report.max_relative_error < 1e-5
    assert report.tolerance == 1e-4
    assert report.argmax_differences == 0
    assert report.rows == sum(len(probe.tokens) for probe in probes)
    assert report.longest_position == CAPACITY - 1
    assert report.to_json()["rows"] == report.rows


def test_the_probes_cover_every_kind_of_step(probes):
    played = [(probe.name, len(probe.tokens)) for probe in probes if probe.cache is None]
    chunks = [("prefill chunk", 19), ("prefill chunk", 12)]
    assert played == [*chunks, *[("decode", 1)] * 3, ("verify", 2), ("verify", 3), ("verify", 4)]
    jumps = {probe.start for probe in probes if probe.cache is not None}
    assert {SLIDING_WINDOW + 1, CAPACITY - WIDEST} < jumps
    assert len(jumps) == 5


@pytest.mark.parametrize("capacity", [16, 17, 40])
@pytest.mark.parametrize("widest", [1, 4, 65])
def test_small_capacities_are_probed_to_their_end(mistral, capacity, widest):
    probes = gate_probes.reference(mistral, capacity, VOCAB, widest, [SLIDING_WINDOW])
    ends = [probe.start + len(probe.tokens) for probe in probes]
    assert max(ends) <= capacity
    assert {"prefill chunk", "decode"} <= {probe.name for probe in probes}
    if widest == 4:
        assert max(ends) == capacity


# Graphs that are wrong from the start: the attention lowering is patched before the trace.


def window_too_wide(a: Any) -> Any:
    return replace(a, window=a.window + 1)


def window_too_narrow(a: Any) -> Any:
    return replace(a, window=a.window - 1)


def wrong_scale(a: Any) -> Any:
    return replace(a, scale=a.scale * 1.01)


def no_softcap(a: Any) -> Any:
    return replace(a, softcap=None)


@pytest.mark.parametrize(
    ("family", "lowering", "defect"),
    [
        ("mistral", "gqa", window_too_wide),
        ("mistral", "portable", window_too_narrow),
        ("mistral", "scatter", wrong_scale),
        ("gemma2", "portable", no_softcap),
    ],
)
def test_a_wrong_number_in_the_attention_is_caught(
    family, lowering, defect, module_of, monkeypatch, tmp_path
):
    right = attention._LOWER[lowering]
    monkeypatch.setitem(attention._LOWER, lowering, lambda a: right(defect(a)))
    module = module_of(family)
    write(module, lowering, tmp_path)
    with pytest.raises(GateError, match=DIFFERS):
        check(tmp_path, module, reference(module))


def test_a_missing_mask_is_caught(mistral, probes, monkeypatch, tmp_path):
    right = attention.additive_mask
    monkeypatch.setattr(attention, "additive_mask", lambda *args: right(*args) * 0)
    write(mistral, "portable", tmp_path)
    with pytest.raises(GateError, match=DIFFERS):
        check(tmp_path, mistral, probes)


def test_a_cache_written_one_position_late_is_caught(mistral, probes, monkeypatch, tmp_path):
    right = attention._onnx

    def late(op: str, inputs: Sequence[torch.Tensor], *rest: Any) -> torch.Tensor:
        if op == "ScatterND":
            past, index, new = inputs
            inputs = [past, index + torch.tensor([0, 0, 1]), new]
        return right(op, inputs, *rest)

    monkeypatch.setattr(attention, "_onnx", late)
    write(mistral, "portable", tmp_path)
    with pytest.raises(GateError, match=DIFFERS):
        check(tmp_path, mistral, probes)


def test_rotary_positions_off_by_one_are_caught_after_a_jump(mistral, probes, tmp_path):
    """Rotary positions are relative: a graph that shifts all of them is right until it is given a
    cache that it did not write itself."""
    hook = mistral.model.rotary_emb.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, kwargs | {"position_ids": kwargs["position_ids"] + 1}),
        with_kwargs=True,
    )
    try:
        write(mistral, "portable", tmp_path)
    finally:
        hook.remove()
    with pytest.raises(GateError, match="draft graph, verify after a jump of 4 tokens at"):
        check(tmp_path, mistral, probes)


# Graphs that were right and are wrong on the disk.


def edit_weight(folder: Path, ending: str, edit: Callable[[NDArray[np.float32]], None]) -> None:
    """Change one weight in the data file."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name.endswith(ending))
    place = {entry.key: entry.value for entry in tensor.external_data}
    start, length = int(place.get("offset", 0)), int(place["length"])
    data = bytearray((folder / "model.onnx.data").read_bytes())
    values = np.frombuffer(data, np.float32, length // 4, start)
    edit(values)
    (folder / "model.onnx.data").write_bytes(data)


def test_one_changed_weight_is_caught(copy, mistral, probes):
    def double_the_largest(values: NDArray[np.float32]) -> None:
        values[np.abs(values).argmax()] *= 2

    edit_weight(copy, "down_proj.weight", double_the_largest)
    with pytest.raises(GateError, match=DIFFERS):
        check(copy, mistral, probes)


def test_a_weight_that_is_not_a_number_is_caught(copy, mistral, probes):
    def spoil(values: NDArray[np.float32]) -> None:
        values[7] = np.nan

    edit_weight(copy, "o_proj.weight", spoil)
    with pytest.raises(GateError, match=STEP + ".*not finite"):
        check(copy, mistral, probes)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("logsumexp", "entropy", "logsumexp, entropy do not describe the logits"),
        ("present.0.key", "present.0.value", "a logit differs from transformers"),
    ],
)
def test_swapped_outputs_are_caught(copy, mistral, probes, first, second, message):
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    other = {first: second, second: first}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [other.get(name, name) for name in names]
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(GateError, match=STEP + message):
        check(copy, mistral, probes)


# What is compared, and how strictly: an engine that repeats the probes, with one thing changed.


class Echo:
    """An engine and its decoder at once, which answers each probe with `change` of the reference."""

    def __init__(
        self, probes: Sequence[gate_probes.Probe], change: Callable[[dict[str, Any]], None]
    ):
        self.capacity = CAPACITY
        self._left, self._change = list(probes), change

    def decoder(self, outputs: tuple[str, ...]) -> Echo:
        return self

    def write_cache(self, layers: object, length: int) -> None:
        pass

    def truncate(self, length: int) -> None:
        pass

    def step(self, tokens: NDArray[np.int64], rows: int | None = None) -> StepOutput | None:
        if (tokens == 1).all():
            return None  # the garbage between two probes
        probe = self._left.pop(0)
        values = {"logits": probe.logits.copy(), "hidden": probe.hidden.copy()}
        self._change(values)
        logits = values["logits"]
        order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        exact = logits.astype(np.float64)
        logsumexp = np.log(np.exp(exact).sum(1))
        logprob = exact - logsumexp[:, None]
        following = np.append(tokens[1:], tokens[-1:])
        return StepOutput(
            token=order[:, 0],
            top_values=np.take_along_axis(logits, order, 1),
            top_ids=order,
            logsumexp=logsumexp,
            entropy=-(np.exp(logprob) * logprob).sum(1),
            next_input_logprob=logprob[np.arange(len(tokens)), following],
            **values,
        )


def compare(
    probes: Sequence[gate_probes.Probe],
    change: Callable[[dict[str, Any]], None],
    precision: str = "fp32",
) -> gate.GateReport:
    return gate.check(Echo(probes, change), probes, precision, "draft")  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_the_tolerance_is_a_share_of_the_largest_logit(probes, precision, tolerance):
    largest = max(float(np.abs(probe.logits).max()) for probe in probes)

    def shift_by(share: float) -> Callable[[dict[str, Any]], None]:
        def change(values: dict[str, Any]) -> None:
            values["logits"] += share * tolerance * largest

        return change

    report = compare(probes, shift_by(0.9), precision)
    assert report.tolerance == tolerance
    assert report.max_relative_error == pytest.approx(0.9 * tolerance, rel=0.05)
    with pytest.raises(GateError, match=f"{tolerance:g} is allowed"):
        compare(probes, shift_by(1.1), precision)


def test_another_token_is_excused_by_a_tie_only(probes):
    row = {"logits": np.zeros((1, VOCAB), np.float32), "hidden": np.ones((1, 4), np.float32)}
    row["logits"][0, :2] = 10, 10 - 1e-4
    tie = gate_probes.Probe("decode", 0, None, np.array([5]), row["logits"], row["hidden"])

    def swap(values: dict[str, Any]) -> None:
        values["logits"][0, :2] = values["logits"][0, 1], values["logits"][0, 0]

    assert compare([tie], swap).argmax_differences == 1

    # Right in every logit, and yet the graph says token 3.
    output = Echo([tie], lambda values: None).step(np.array([5]))
    assert output is not None
    with pytest.raises(GateError, match=r"row 0 yields token 3 instead of 0, though .* by 10"):
        gate._argmax_differences(replace(output, token=np.array([3])), tie, 1e-4, "draft graph")


@pytest.mark.parametrize("value", [np.nan, 1e3])
def test_a_wrong_hidden_state_is_caught(probes, value):
    def change(values: dict[str, Any]) -> None:
        values["hidden"][-1, 2] = value

    with pytest.raises(GateError, match=STEP + "the hidden state differs from transformers by"):
        compare(probes, change)


def test_a_checkpoint_without_finite_logits_is_its_own_error(module_of):
    module = module_of("llama")
    weight = module.model.norm.weight
    before = weight.clone()
    weight.fill_(float("inf"))
    try:
        with pytest.raises(CheckpointError, match="not finite from this checkpoint in float32"):
            reference(module)
    finally:
        weight.copy_(before)


# The whole export.


def test_a_failed_gate_leaves_nothing_but_the_lock(checkpoint_of, monkeypatch, tmp_path):
    right = attention.additive_mask
    monkeypatch.setattr(attention, "additive_mask", lambda *args: right(*args) * 0)
    folder = checkpoint_of("llama", layers=1)
    options = ExportOptions(str(folder), draft="none", lowering="portable", capacity=CAPACITY)
    with pytest.raises(GateError) as caught:
        export_bundle(options, tmp_path / "models" / "wrong")
    assert re.match(DIFFERS.replace("draft", "target"), caught.value.message)
    assert caught.value.hint is not None
    assert "nothing was written" in caught.value.hint
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".wrong.lock"]
