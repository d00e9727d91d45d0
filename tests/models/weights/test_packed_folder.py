"""GPTQ, AWQ and compressed-tensors folders are the models of their dequantised weights, bit for bit."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from packed_folders import (
    Matrix,
    awq,
    compressed_config,
    gptq,
    int_quantized,
    pack_quantized,
    quantised_folder,
)
from safetensors.torch import load_file, save_file

from cospec.errors import CheckpointError
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.models.weights.streamed_model import streamed_model

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
RNG = np.random.default_rng

FORMATS: dict[str, tuple[Any, Any, Any]] = {
    "gptq": (GPTQ, {"bits": 4}, gptq),
    "gptq-symmetric": (GPTQ, {"bits": 4, "has_zeros": False}, gptq),
    "gptq-in-order-of-activations": (
        GPTQ | {"desc_act": True},
        {"bits": 4, "is_shuffled": True},
        gptq,
    ),
    "gptq-8": (GPTQ | {"bits": 8}, {"bits": 8}, gptq),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, {"bits": 4}, partial(gptq, version=2)),
    "awq": (AWQ, {"bits": 4}, awq),
    "w4a16": (
        compressed_config("pack-quantized", 4),
        {"bits": 4, "has_zeros": False},
        partial(pack_quantized, has_zeros=False),
    ),
    "w4a16-asymmetric": (
        compressed_config("pack-quantized", 4, symmetric=False),
        {"bits": 4},
        partial(pack_quantized, has_zeros=True),
    ),
    "w8a16": (
        compressed_config("pack-quantized", 8),
        {"bits": 8, "has_zeros": False},
        partial(pack_quantized, has_zeros=False),
    ),
    "int8": (
        compressed_config("int-quantized", 8, strategy="channel"),
        {"bits": 8, "has_zeros": False, "group": None},
        int_quantized,
    ),
}


@pytest.fixture(scope="module")
def plain(checkpoint_of):
    return checkpoint_of("llama", layers=1)


@pytest.fixture
def folders(plain, tmp_path):
    """Returns (quantised, dequantised) of a format."""

    def made(name: str, config: Any = "its own"):
        own, settings, store = FORMATS[name]
        rng = RNG(0)

        def matrix_of(outputs, inputs):
            group = inputs if settings.get("group", 32) is None else 32
            return Matrix(outputs, inputs, rng=rng, **settings | {"group": group})

        chosen = own if config == "its own" else config
        return quantised_folder(plain, tmp_path / name, chosen, matrix_of, store)

    return made


def opened(folder):
    return open_checkpoint(resolve(str(folder)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_folder_is_its_dequantised_model(folders, name):
    quantised, dequantised = folders(name)
    reference = load_module(opened(dequantised), torch.float32)
    checkpoint = opened(quantised)
    assert checkpoint.parameters == opened(dequantised).parameters
    ids = torch.arange(20)[None]
    with streamed_model(checkpoint, torch.float32) as model, torch.no_grad():
        assert torch.equal(model.module(ids).logits, reference(ids).logits)
        kept = 0
        for parameter, expected in reference.named_parameters():
            stored = model.weights.blocks(parameter)
            if stored is None:
                continue
            kept += 1
            parts = [(blocks.matrix(), given) for blocks, given in stored]
            for whole in map(np.concatenate, zip(*parts, strict=True)):
                assert np.array_equal(whole, expected.detach().numpy())
        assert kept == 7


def test_settings_of_older_tools_are_found_in_their_own_file(folders):
    quantised, _ = folders("gptq", config=None)
    with pytest.raises(CheckpointError, match="does not say in which format") as error:
        opened(quantised)
    assert "quantize_config.json" in str(error.value.hint)
    (quantised / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    assert opened(quantised).packing.kind == "GPTQ 4-bit"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method bitsandbytes"),
        (GPTQ | {"bits": 3}, "bits 3"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        (AWQ | {"version": "gemv"}, "version 'gemv'"),
        (compressed_config("float-quantized", 8, type="float"), "format 'float-quantized'"),
        (compressed_config("naive-quantized", 8, type="float"), "the type float8"),
        (compressed_config("nvfp4-pack-quantized", 4, type="float"), "nvfp4-pack-quantized"),
        ("gptq", "quantization_config is no object"),
    ],
)
def test_formats_that_cannot_be_read_are_refused_by_name(folders, config, named):
    quantised, _ = folders("gptq", config=config)
    with pytest.raises(CheckpointError, match=named):
        opened(quantised)


@pytest.mark.parametrize("fault", ["missing", "misshapen", "left over", "uneven"])
def test_damaged_folders_are_refused(folders, fault):
    quantised, _ = folders("gptq")
    file = quantised / "model.safetensors"
    tensors = load_file(file)
    stem = "model.layers.0.mlp.up_proj"
    expected = {
        "missing": rf"{stem}\.scales is missing, which a GPTQ 4-bit matrix of 96 outputs and 64",
        "misshapen": rf"{stem}\.qweight is \(4, 96\) instead of \(8, 96\)",
        "left over": "in the files but not in the architecture: model.layers.7",
        "uneven": "its 64 inputs are not divided evenly among 2 groups",
    }[fault]
    if fault == "missing":
        del tensors[f"{stem}.scales"]
    elif fault == "misshapen":
        tensors[f"{stem}.qweight"] = tensors[f"{stem}.qweight"][:4].clone()
    elif fault == "left over":
        tensors["model.layers.7.mlp.up_proj.qweight"] = tensors[f"{stem}.qweight"].clone()
    else:
        tensors[f"{stem}.g_idx"][0] = 1
    save_file(tensors, file, metadata={"format": "pt"})
    with (
        pytest.raises(CheckpointError, match=expected),
        streamed_model(opened(quantised), torch.float32) as model,
    ):
        list(model.weights.blocks(f"{stem}.weight"))
