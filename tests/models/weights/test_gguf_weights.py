"""Quantised GGUF weights in their own numbers, bit for bit those of the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf_files import quantised, random_gguf

from cospec.errors import CheckpointError
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.gguf import read_header
from cospec.models.presets import resolve
from cospec.models.weights.gguf_kinds import RECORDS, unpack
from cospec.models.weights.gguf_weights import refuse_unkept
from cospec.models.weights.streamed_model import streamed_model

VALUE_BITS = {
    "Q4_0": 4,
    "Q4_1": 4,
    "Q5_0": 5,
    "Q5_1": 5,
    "Q8_0": 8,
    "Q4_K": 4,
    "Q5_K": 5,
    "Q6_K": 6,
}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_unpacks_to_what_gguf_dequantises(kind):
    data = quantised(kind, 7, 512, np.random.default_rng(0))
    expected = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    blocks = unpack(kind, data)
    assert np.array_equal(blocks.matrix(), expected)
    assert len(np.unique(expected)) > 1000
    assert blocks.bits == VALUE_BITS[kind]
    assert blocks.values.max() == (1 << blocks.bits) - 1
    index = np.array([3, 0, 6])
    assert np.array_equal(blocks.rows(index).matrix(), expected[index])


def test_a_record_is_as_large_as_ggml_says():
    for kind, record in RECORDS.items():
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert record.itemsize == size


def mixed(name: str) -> str:
    kinds = list(RECORDS)
    return kinds[sum(map(ord, name)) % len(kinds)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_streamed_file_is_the_module_that_transformers_loads(tmp_path, architecture):
    file = random_gguf(tmp_path / "m.gguf", mixed, architecture=architecture)
    checkpoint = open_checkpoint(resolve(str(file)))
    expected = load_module(checkpoint, torch.float32)
    ids = torch.arange(30)[None]
    with streamed_model(checkpoint, torch.float32) as model, torch.no_grad():
        assert all(parameter.is_meta for parameter in model.module.parameters())
        assert torch.equal(model.module(ids).logits, expected(ids).logits)
        assert all(parameter.is_meta for parameter in model.module.parameters())
        state = expected.state_dict()
        assert set(model.weights) == set(state)
        for name in model.weights:
            stored = model.weights.blocks(name)
            assert (stored is None) == (state[name].ndim == 1)
            if stored is not None:
                parts = [(blocks.matrix(), reference) for blocks, reference in stored]
                for whole in map(np.concatenate, zip(*parts, strict=True)):
                    assert np.array_equal(whole, state[name].numpy())


def test_a_hollow_module_has_the_shapes_and_ties_of_the_real_one(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q4_0")
    checkpoint = open_checkpoint(resolve(str(file)))
    with streamed_model(checkpoint, torch.float32) as model:
        hollow, expected = model.hollow, load_module(checkpoint, torch.float32)
        shapes = {name: each.shape for name, each in expected.named_parameters()}
        assert {name: each.shape for name, each in hollow.named_parameters()} == shapes
        assert hollow.lm_head.weight is hollow.model.embed_tokens.weight
        for name, buffer in expected.named_buffers():
            assert torch.equal(buffer, hollow.get_buffer(name))


def test_missing_left_over_and_misshapen_tensors_are_refused(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "F32")
    content = file.read_bytes()
    for old, new, fault in (
        (b"blk.0.ffn_up.weight", b"blk.0.ffn_xp.weight", "missing from the files"),
        (b"blk.1.attn_norm.weight", b"blk.9.attn_norm.weight", "in the files but not"),
    ):
        file.write_bytes(content.replace(old, new))
        with pytest.raises(CheckpointError, match=fault):
            open_streamed(file)
    header = read_header(random_gguf(file, lambda name: "F32"))
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_up.weight")
    name = tensor.name.encode()
    shape = b"".join(n.to_bytes(8, "little") for n in tensor.shape)
    at = content.index(name) + len(name) + 4
    assert content[at : at + 16] == shape
    swapped = b"".join(n.to_bytes(8, "little") for n in reversed(tensor.shape))
    file.write_bytes(content[:at] + swapped + content[at + 16 :])
    with pytest.raises(CheckpointError, match=r"of another shape: model\.layers\.0\.mlp\.up_proj"):
        open_streamed(file)


def open_streamed(file):
    with streamed_model(open_checkpoint(resolve(str(file))), torch.float32):
        pass


def test_kinds_that_are_not_kept_are_refused_by_name_with_the_cost_of_widening(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q4_0")
    refuse_unkept(file)
    header = read_header(file)
    content = bytearray(file.read_bytes())
    # One tensor becomes Q2_K: fewer bytes of the same file.
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight")
    at = content.index(tensor.name.encode()) + len(tensor.name) + 4 + 16
    assert int.from_bytes(content[at : at + 4], "little") == gguf.GGMLQuantizationType.Q4_0
    content[at : at + 4] = int(gguf.GGMLQuantizationType.Q2_K).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"kind Q2_K cannot be kept .* \(0M of 1M") as error:
        refuse_unkept(file)
    assert "--weights fp16 widens all of them: 2.4 MiB instead of 659" in str(error.value.hint)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path):
    file = random_gguf(tmp_path / "m.gguf", lambda name: "Q4_0")
    tensor = next(t for t in read_header(file).tensors if t.name == "blk.0.ffn_down.weight")
    content = bytearray(file.read_bytes())
    at = content.index(tensor.name.encode()) + len(tensor.name) + 4
    content[at : at + 8] = (tensor.shape[0] - 8).to_bytes(8, "little")
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match="rows of 504 weights; Q4_0 stores them in blocks of 32"
    ):
        read_header(file)
