"""Which form and which weights a device gets, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import random_gguf

from cospec.errors import ResourceError, UsageError
from cospec.export.tensorrt_choice import (
    MARGIN,
    EngineChoice,
    Sizes,
    check_weights,
    choose_engines,
    weight_bytes,
)
from cospec.models.checkpoint import Checkpoint, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.tensorrt.device_memory import CONTEXT_BYTES
from cospec.runtime.tensorrt.devices import DEVICES, GENERIC, Device, resolve_device

SIZES = Sizes("fp16", capacity=64, vocab_size=320, widest=64)


@pytest.fixture(scope="module")
def llama(checkpoint_of: Any) -> Checkpoint:
    return open_checkpoint(resolve(str(checkpoint_of("llama"))))


def choose(checkpoint: Checkpoint, device: Device, **wanted: Any) -> EngineChoice:
    return choose_engines(device, {"target": checkpoint, "draft": checkpoint}, SIZES, **wanted)


def large(checkpoint: Checkpoint) -> Checkpoint:
    """The same with the weights of 8B."""
    return replace(checkpoint, parameters=8_000_000_000)


@pytest.mark.parametrize(
    ("gib", "weights"), [(64, "fp16"), (40, "fp16"), (30, "int8"), (16, "int4")]
)
def test_the_widest_weights_that_leave_a_margin_are_chosen(gib, weights, llama):
    """A pair of 8B: the target once and the draft twice, so 48 GB in fp16."""
    target = replace(llama, parameters=6_000_000_000)
    device = replace(resolve_device("rtx-4090"), memory_bytes=gib << 30)
    choice = choose(target, device) if gib != 40 else choose(llama, device)
    assert set(choice.weights.values()) == {weights}
    assert choice.memory.total <= (1 - MARGIN) * device.memory_bytes
    assert any("widest that fit" in reason for reason in choice.reasons) == (weights != "fp16")
    assert f"weights in {weights}" in "\n".join(choice.memory.lines())


def test_what_fits_in_no_form_is_refused_with_the_whole_sum(llama):
    device = replace(resolve_device("orin-nano-jp6.2"))
    with pytest.raises(ResourceError, match=r"orin-nano-jp6\.2 has 8\.0 GiB") as refused:
        choose(large(llama), device)
    assert "weights in int4" in refused.value.message
    with pytest.raises(ResourceError) as refused:
        choose(large(llama), device, weights="fp16")
    assert "--weights int4" in refused.value.hint


def test_without_a_known_memory_weights_stay_plain(llama):
    choice = choose(large(llama), GENERIC)
    assert choice.weights == {"target": "fp16", "draft": "fp16"}
    assert choice.request(GENERIC, "target") is None


def test_a_gpu_without_int4_is_not_given_any(llama):
    t4 = replace(resolve_device("t4"), memory_bytes=30 << 30)
    target = replace(llama, parameters=6_000_000_000)
    assert set(choose(target, t4).weights.values()) == {"int8"}
    with pytest.raises(ResourceError):
        choose(target, replace(t4, memory_bytes=16 << 30))


def test_a_checkpoint_in_few_bits_keeps_its_own_while_they_fit(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q8_0")
    checkpoint = open_checkpoint(resolve(str(file)))
    device = resolve_device("rtx-4090")
    assert set(choose(checkpoint, device).weights.values()) == {"keep"}
    assert "own bits" in "\n".join(choose(checkpoint, device).memory.lines())
    sizes = {
        each: weight_bytes(checkpoint, "fp16", each, device) for each in ("fp16", "keep", "int4")
    }
    assert sizes["fp16"] > 1.7 * sizes["keep"]
    little = 3 * sizes["keep"] + CONTEXT_BYTES + (20 << 20)
    tight = replace(device, memory_bytes=int(little))
    assert set(choose(checkpoint, tight).weights.values()) == {"int4"}


@pytest.mark.parametrize(
    ("device", "weights", "takes"),
    [
        ("agx-orin-jp6", "fp8", "fp16, int8, int4"),
        ("rtx-3090", "fp8", "fp16, int8, int4"),
        ("rtx-2080", "int4", "fp16, int8"),
        ("t4", "fp8", "fp16, int8"),
    ],
)
def test_weights_that_a_gpu_lacks_are_refused_by_name(device, weights, takes):
    found = resolve_device(device)
    with pytest.raises(UsageError, match=rf"{device} \(SM {found.sm}\) .* in {weights}") as refused:
        check_weights(found, weights)
    assert f"--weights {takes}" in refused.value.hint


def test_fp8_is_for_sm_89_and_newer():
    for device in DEVICES.values():
        assert device.sm is not None
        if device.sm >= 89:
            check_weights(device, "fp8")
        else:
            with pytest.raises(UsageError):
                check_weights(device, "fp8")


def test_a_device_without_a_name_is_asked_for_it():
    with pytest.raises(UsageError) as refused:
        check_weights(GENERIC, "int4")
    assert "--device" in refused.value.hint


@pytest.mark.parametrize(
    ("device", "lowering"),
    [
        ("thor-jp7.2", "portable"),
        ("agx-orin-jp7.2", "portable"),
        ("thor-jp7.1", "portable"),
        ("h100", "scatter"),
        ("rtx-4090", "scatter"),
    ],
)
def test_a_single_head_of_keys_and_values_decides_the_form(device, lowering, llama, checkpoint_of):
    """TensorRT-RTX 1.4, of the time of 10.16, fails on it in the form scatter."""
    one = open_checkpoint(
        resolve(str(checkpoint_of("llama", overrides={"num_key_value_heads": 1})))
    )
    found = resolve_device(device)
    choice = choose_engines(found, {"target": llama, "draft": one}, SIZES)
    assert choice.lowering == lowering
    assert any("single head" in each for each in choice.reasons) == (lowering != found.lowering)
    assert choose_engines(found, {"target": llama}, SIZES).lowering == found.lowering
    asked = choose_engines(found, {"target": one}, SIZES, lowering="scatter")
    assert asked.lowering == "scatter", "the user's choice is the user's"


@pytest.mark.parametrize(
    ("device", "weights", "unpacks"),
    [
        ("rtx-4090", "int8", False),
        ("rtx-4090", "int4", False),
        ("rtx-4090", "fp8", True),
        ("agx-orin-jp6", "int8", True),
        ("agx-orin-jp6", "int4", False),
    ],
)
def test_scratch_memory_of_unpacked_weights_is_counted(device, weights, unpacks, llama):
    plain, chosen = (
        choose(llama, resolve_device(device), weights=each).memory.engines[0].activations
        for each in ("fp16", weights)
    )
    assert (chosen - plain > 2 * llama.vocab_size * llama.config.hidden_size) == unpacks


def test_what_is_planned_is_what_is_written(tmp_path):
    """Estimates from headers against the files of an export."""
    from tensorrt_matrix import TINY_TARGET, WEIGHTS, checkpoint_of, write_graph

    checkpoint = checkpoint_of(TINY_TARGET, tmp_path)
    opened = open_checkpoint(resolve(str(checkpoint)))
    forms = {"portable": "agx-orin-jp6", "scatter": "rtx-4090"}
    for lowering, device in forms.items():
        for weights in ("fp16", *WEIGHTS):
            folder = Path(tmp_path / lowering / weights)
            exported = write_graph(checkpoint, lowering, folder, weights=weights)
            written = (folder / exported.spec.graph).with_name("model.onnx.data").stat().st_size
            planned = weight_bytes(opened, "fp16", weights, resolve_device(device))
            assert planned == pytest.approx(written, rel=0.06), (lowering, weights)
