"""Plain folders: the weights that transformers loads, a tensor in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import FAMILIES, random_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cospec.errors import CheckpointError
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.models.weights.folder_weights import FolderWeights
from cospec.models.weights.streamed_model import streamed_model

IDS = torch.arange(3, 20)[None]


def renamed(folder: Path, old: str, new: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {name.replace(old, new): value for name, value in tensors.items()},
        file,
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_module_computes_what_transformers_loads(tmp_path, family):
    folder = random_checkpoint(tmp_path / family, family)
    whole = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    checkpoint = open_checkpoint(resolve(str(folder)))
    with streamed_model(checkpoint, torch.float32) as model, torch.no_grad():
        # The files of gpt_neox have another name for the head.
        assert isinstance(model.weights, FolderWeights) == (family != "gpt_neox")
        assert torch.equal(model.module(IDS).logits, whole(IDS).logits)
        for name, parameter in whole.named_parameters(remove_duplicate=False):
            assert torch.equal(model.weights[name], parameter)
            assert model.weights.shapes[name] == tuple(parameter.shape)


def test_no_file_stays_mapped(tmp_path):
    folder = random_checkpoint(tmp_path / "llama", "llama")
    checkpoint = open_checkpoint(resolve(str(folder)))
    with streamed_model(checkpoint, torch.float32) as model:
        assert sum(model.weights[name].numel() for name in model.weights) > 0
        assert str(folder) not in Path("/proc/self/maps").read_text()


def test_names_of_older_versions_are_left_to_transformers(tmp_path):
    folder = random_checkpoint(tmp_path / "gpt2", "gpt2")
    whole = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    renamed(folder, "transformer.", "")
    checkpoint = open_checkpoint(resolve(str(folder)))
    with streamed_model(checkpoint, torch.float32) as model, torch.no_grad():
        assert not isinstance(model.weights, FolderWeights)
        assert torch.equal(model.module(IDS).logits, whole(IDS).logits)


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path):
    folder = random_checkpoint(tmp_path / "llama", "llama")
    renamed(folder, "layers.1.mlp.up_proj", "layers.1.mlp.other")
    checkpoint = open_checkpoint(resolve(str(folder)))
    with (
        pytest.raises(CheckpointError, match="missing from the files"),
        streamed_model(checkpoint, torch.float32),
    ):
        pass
