"""GGUF: the header reader on small and damaged files, and one real model through transformers."""

import contextlib
import struct

import gguf as gguf_package
import numpy as np
import pytest
import torch
from gguf_files import SPM_TOKENS, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoConfig

from cospec.errors import CheckpointError
from cospec.models import gguf
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.models.vocabulary import shared_vocabulary, tokenizer_json


def write(file, architecture="llama", tensors=("token_embd.weight",), **metadata):
    writer = gguf_package.GGUFWriter(file, architecture)
    writer.add_token_list(["<s>", "</s>", "é"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    for name in tensors:
        writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_header(tmp_path):
    file = write(tmp_path / "m.gguf", llama__context_length=64)
    header = gguf.read_header(file)
    assert header.architecture == "llama"
    assert header.metadata["llama.context_length"] == 64
    assert header.parameters == 128
    gguf.check_header(file, header)
    theirs = gguf_package.GGUFReader(file)
    assert header.data_start == theirs.data_offset
    assert [t.name for t in header.tensors] == [t.name for t in theirs.tensors]


def test_unsupported_architecture(tmp_path):
    file = write(tmp_path / "m.gguf", "qwen2moe")
    with pytest.raises(CheckpointError, match="'qwen2moe' is not supported"):
        open_checkpoint(resolve(str(file)))


@pytest.mark.parametrize("change", ["tensor", "metadata"])
def test_rescaled_positions_are_refused(tmp_path, change):
    if change == "tensor":
        file = write(tmp_path / "m.gguf", tensors=("token_embd.weight", "rope_freqs.weight"))
    else:
        file = write(tmp_path / "m.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(CheckpointError, match="rotary positions"):
        open_checkpoint(resolve(str(file)))


def test_split_file(tmp_path):
    file = write(tmp_path / "m.gguf", split__count=2)
    with pytest.raises(CheckpointError, match="split"):
        gguf.read_header(file)


@pytest.mark.parametrize("architecture", gguf.ARCHITECTURES)
def test_the_configuration_is_that_of_transformers(tmp_path, architecture):
    own = {"attention.sliding_window": 32} if "gemma" in architecture else {}
    keys = {"ggml__bos_token_id": 1, "ggml__eos_token_id": 2}
    file = write_gguf(tmp_path / "m.gguf", SPM_TOKENS, architecture=architecture, sizes=own, **keys)
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file=file.name)
    ours = gguf.read_config(gguf.read_header(file))
    assert type(ours) is type(theirs)
    assert ours.to_dict() == theirs.to_dict() | {"_name_or_path": ""}


def test_lost_window_is_noticed(tmp_path):
    class Config:
        num_attention_heads, hidden_size, head_dim, sliding_window = 4, 64, 16, None

    file = write(tmp_path / "m.gguf", llama__attention__sliding_window=16)
    with pytest.raises(CheckpointError, match=r"sliding_window is 16, but .* None"):
        gguf.check_config(file, gguf.read_header(file), Config())


@pytest.mark.parametrize("length", [0, 3, 10, 30, 200, -1])
def test_cut_off(tmp_path, length):
    file = write(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        gguf.read_header(file)


def test_wild_counts(tmp_path):
    file = tmp_path / "m.gguf"
    for head in (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), b"GGUF" + struct.pack("<I", 9)):
        file.write_bytes(head + bytes(64))
        with pytest.raises(CheckpointError):
            gguf.read_header(file)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_give_our_error_or_a_header(tmp_path, data):
    file = tmp_path / "m.gguf"
    if not file.exists():
        write(file)
        file.rename(tmp_path / "good")
    content = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 513))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        gguf.read_header(file)


@pytest.mark.wheel
def test_smollm2(smollm2_gguf):
    checkpoint = open_checkpoint(resolve(str(smollm2_gguf)))
    assert (checkpoint.family, checkpoint.vocab_size) == ("llama", 49152)
    assert checkpoint.max_positions == 8192
    assert checkpoint.parameters == 134_515_008
    assert (checkpoint.bos_id, checkpoint.eos_ids) == (1, (2, 0))  # the turn, the text
    assert checkpoint.tokenizer.special_tokens_map["eos_token"] == "<|im_end|>"
    assert checkpoint.tokenizer.chat_template is not None
    assert shared_vocabulary(checkpoint, None).size == 49152
    tokenizer = Tokenizer.from_str(tokenizer_json(checkpoint))
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    module = load_module(checkpoint, torch.float32, attention="sdpa")
    with torch.no_grad():
        assert tokenizer.decode([int(module(ids).logits[0, -1].argmax())]) == " Paris"
