"""NVIDIA's parser and builder take what we export: the tiny pair, three families; a record of all.

`make test-trt` does every model for three GPUs, with three versions of the builder, and writes the
record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorrt_matrix import (
    FORMS,
    LAYERS,
    LOWERINGS,
    NUM_DRAFT_TOKENS,
    PREFILL_CHUNK,
    RESULTS,
    TINY_DRAFT,
    TINY_TARGET,
    VOCAB,
    check_and_build,
    jobs,
    key,
    models,
    write_graph,
)
from tensorrt_table import DOCUMENT, REPORTS, render, reports_in

from cospec.models import tiny_pair
from cospec.runtime.tensorrt.profiles import draft_profiles

# Grouped heads with rotary positions; a norm on queries and keys; soft caps and sliding windows.
IN_CI = ("llama", "qwen3", "gemma2")


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason='no TensorRT-RTX here: pip install "cospec[rtx]"'
    )


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("family", IN_CI)
def test_a_family_parses_lints_and_builds(
    family, lowering, trt, checkpoint_of: Callable[..., Path], tmp_path
):
    checkpoint = checkpoint_of(family, layers=LAYERS, vocab_size=VOCAB)
    spec = write_graph(checkpoint, lowering, tmp_path).spec
    found = check_and_build(trt, tmp_path, spec, 86)
    assert "refused" not in found
    assert found["built"]
    if lowering == "scatter" and family != "gemma2":  # its soft cap is spelled out
        assert found["fused_attention_per_profile"] == LAYERS


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_tiny_pair_parses_lints_and_builds(role, trt, tmp_path):
    """The draft has three heads: too few for the kernel of single tokens, so it is spelled out."""
    checkpoint = Path(tiny_pair.__file__).parent / role
    spec = replace(
        write_graph(checkpoint, "scatter", tmp_path).spec,
        profiles=draft_profiles(NUM_DRAFT_TOKENS, PREFILL_CHUNK),
    )
    found = check_and_build(trt, tmp_path, spec, 86)
    assert found["built"], found
    assert found["fused_attention_per_profile"] == spec.form.layers


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def test_the_record_holds_every_model_version_form_and_gpu(recorded):
    """In few bits, some models only: `tensorrt_matrix.py --missing` adds others."""
    todo = [job for model in models() for form in FORMS for job in jobs(model, form)]
    required = {
        key(job)
        for job in todo
        if job["weights"] == "fp16"
        or (job["model"] in ("llama", TINY_TARGET) and job["lowering"] == "scatter" and job["free"])
    }
    found = [key(row) for row in recorded["rows"]]
    assert required <= set(found) <= {key(job) for job in todo}
    assert len(found) == len(set(found))


def test_the_record_refuses_what_is_known_and_in_the_builders_words(recorded):
    """fp8 before Ada, and one bug: TensorRT-RTX 1.4 and a single head of keys and values."""
    for row in recorded["rows"]:
        too_old = row["weights"] == "fp8" and row["sm"] == 86
        buggy = (row["model"], row["rtx"], row["lowering"]) == (TINY_DRAFT, "1.4.0.76", "scatter")
        assert row["parsed"], row
        assert row["linted"], row
        assert row["built"] == (not too_old and not buggy), row
        if too_old:
            assert "fp8_e4m3, which SM86 does not compute in" in row["refused"]
        if buggy:
            assert (
                "tiled_fusion_pipeline.cpp:254: CHECK(g_->ssa_validation()) failed"
                in row["refused"]
            )


def test_the_record_shows_a_fused_kernel_for_every_attention(recorded):
    for row in recorded["rows"]:
        if row["built"] and row["lowering"] == "scatter":
            spelled_out = row["model"] == "gemma2"  # its soft cap
            fused = 0 if spelled_out else row["layers"]
            assert row["fused_attention_per_profile"] == fused, row


def test_the_table_is_the_records(recorded):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == render(text, recorded, reports_in(REPORTS)), "make test-trt writes it"
