"""The memory plan of a device: its terms, its sum, its refusal."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from example_manifest import MANIFEST

from cospec.errors import ResourceError
from cospec.runtime.bundle.manifest import KeptWeights
from cospec.runtime.tensorrt.device_memory import (
    CONTEXT_BYTES,
    SYSTEM_BYTES,
    UNPACKED_HEADS,
    DeviceMemory,
    arbiter_memory,
    bundle_memory,
    decoder_memory,
    ensure_fits,
)
from cospec.runtime.tensorrt.devices import GENERIC, resolve_device

GB = 1 << 30
RESULTS = Path(__file__).resolve().parents[2] / "data" / "tensorrt_results.json"


def memory(device: str, weights: int) -> DeviceMemory:
    chosen = resolve_device(device)
    return DeviceMemory(
        chosen,
        (
            decoder_memory("target", weights, GB, chosen.lowering, 128_000, 64),
            decoder_memory("draft", GB, 64 << 20, chosen.lowering, 128_000, 64),
            arbiter_memory(16_000),
        ),
    )


def test_the_sum_is_of_its_terms():
    plan = memory("thor-jp7.2", 16 * GB)
    assert plan.total == sum(engine.total for engine in plan.engines) + CONTEXT_BYTES + SYSTEM_BYTES
    target, draft, arbiter = plan.engines
    assert (target.weights, target.cache) == (16 * GB, GB)
    assert draft.weights == 2 * GB, "a fixed width stores the weights a second time"
    assert (arbiter.weights, arbiter.cache) == (16_000, 0)
    assert "16.0 GiB weights + 1.0 GiB KV cache" in "\n".join(plan.lines())
    assert plan.to_json()["total"] == plan.total


def test_the_portable_form_has_two_caches():
    assert memory("agx-orin-jp6", GB).engines[0].cache == 2 * GB
    assert memory("agx-orin-jp7.2", GB).engines[0].cache == GB


def test_what_does_not_fit_is_refused_with_the_sum():
    ensure_fits(memory("agx-orin-jp6", 16 * GB), ["less"])
    with pytest.raises(ResourceError) as refused:
        ensure_fits(memory("orin-nano-jp6", 16 * GB), ["a smaller --capacity"])
    assert "orin-nano-jp6 has 8.0 GiB" in refused.value.message
    assert "target   16.0 GiB weights" in refused.value.message
    assert "sum" in refused.value.message
    assert refused.value.hint == "ask for less: a smaller --capacity"


@pytest.mark.parametrize(
    ("device", "kind", "bits", "unpacks"),
    [
        ("rtx-4090", "int4 in blocks of 128", 4.125, False),
        ("rtx-4090", "int8", 8.01, False),
        ("rtx-4090", "Q8_0", 8.5, True),
        ("rtx-4090", "fp8", 8.01, True),
        ("agx-orin-jp6", "int8", 8.01, True),
    ],
)
def test_weights_of_a_bundle_that_an_engine_unpacks_are_counted(device, kind, bits, unpacks):
    manifest = MANIFEST
    target = manifest.models.target
    kept = KeptWeights(kind=kind, tensors=1, weights=1, bits_per_weight=bits)
    changed = msgspec.structs.replace(target, kept_weights=(kept,))
    models = msgspec.structs.replace(manifest.models, target=changed)
    chosen = resolve_device(device)
    plain, kept_plan = (
        bundle_memory(msgspec.structs.replace(manifest, models=each), chosen, ["target"])
        for each in (manifest.models, models)
    )
    head = 2 * manifest.vocab_size * target.hidden_size
    assert (kept_plan.total - plain.total == int(UNPACKED_HEADS * head)) == unpacks
    assert (kept_plan.total == plain.total) != unpacks


def test_a_machine_not_known_yet_refuses_nothing():
    ensure_fits(DeviceMemory(GENERIC, memory("rtx-4090", 900 * GB).engines), [])


def test_the_estimate_of_scratch_is_above_what_was_measured():
    results = json.loads(RESULTS.read_text())
    # The precision that the exporter writes; an engine with fp8 weights dequantises them into scratch.
    built = [row for row in results["rows"] if row["built"] and row["weights"] == "fp16"]
    assert built
    for row in built:
        estimate = decoder_memory("target", 0, 0, row["lowering"], row["vocab_size"], row["widest"])
        assert row["activation_bytes"] <= estimate.activations, row
