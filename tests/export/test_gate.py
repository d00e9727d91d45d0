"""The gate refuses graphs that are wrong in small ways, and says which, where and by how much."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from factories import SLIDING_WINDOW
from gate_runs import CAPACITY, DIFFERS, STEP, VOCAB, WIDEST, check, reference, write
from numpy.typing import NDArray

from cospec.errors import GateError
from cospec.export import attention
from cospec.export import probes as gate_probes
from cospec.export.pipeline import ExportOptions, export_bundle

pytestmark = pytest.mark.usefixtures("one_thread")


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
