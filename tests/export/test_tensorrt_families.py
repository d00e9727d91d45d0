"""NVIDIA's parser and builder take what we export: the tiny pair, three families; a record of all.

`make test-trt` does all twelve families for three GPUs and writes the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import FAMILIES
from tensorrt_matrix import (
    LAYERS,
    LOWERINGS,
    NUM_DRAFT_TOKENS,
    PREFILL_CHUNK,
    RESULTS,
    SMS,
    VOCAB,
    check_and_build,
    write_graph,
)
from tensorrt_table import DOCUMENT, render

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
    spec = write_graph(checkpoint, lowering, tmp_path)
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
        write_graph(checkpoint, "scatter", tmp_path),
        profiles=draft_profiles(NUM_DRAFT_TOKENS, PREFILL_CHUNK),
    )
    found = check_and_build(trt, tmp_path, spec, 86)
    assert found["built"], found
    assert found["fused_attention_per_profile"] == spec.form.layers


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def test_the_record_holds_every_family_form_and_gpu(recorded):
    found = {(row["model"], row["lowering"], row["sm"]) for row in recorded["rows"]}
    assert found == {(f, form, sm) for f in FAMILIES for form in LOWERINGS for sm in SMS}
    for row in recorded["rows"]:
        assert row["built"] or row["refused"], "what cannot be built says why"


def test_the_table_is_the_records(recorded):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == render(text, recorded), "make test-trt writes it"
