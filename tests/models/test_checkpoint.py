"""Checkpoints that cannot be used: each refused with its own reason, naming the file."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cospec.errors import CheckpointError
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve


@pytest.fixture
def folder(checkpoint_of, tmp_path):
    """A fresh copy of a good llama checkpoint, to be damaged."""
    return shutil.copytree(checkpoint_of("llama"), tmp_path / "model")


def refusal(folder, *, load=False):
    source = resolve(str(folder))
    if not load:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(source)
        return str(caught.value)
    checkpoint = open_checkpoint(source)
    with pytest.raises(CheckpointError) as caught:
        load_module(checkpoint, torch.float32)
    return str(caught.value)


def edit_config(folder, remove=(), **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text()) | changes
    for key in remove:
        del content[key]
    file.write_text(json.dumps(content))


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("mixtral", "MixtralForCausalLM"),
        ("qwen3_moe", "Qwen3MoeForCausalLM"),
        ("mamba", "MambaForCausalLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("llama", "LlamaForSequenceClassification"),
        ("llama", "LlamaModel"),
        ("brand_new", "BrandNewForCausalLM"),
    ],
)
def test_unsupported_architectures(folder, model_type, architecture):
    edit_config(folder, model_type=model_type, architectures=[architecture])
    text = refusal(folder)
    assert architecture in text
    assert "LlamaForCausalLM, MistralForCausalLM" in text


def test_foreign_code_is_refused(folder):
    auto_map = {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    edit_config(folder, model_type="x", architectures=["XForCausalLM"], auto_map=auto_map)
    text = refusal(folder)
    assert "trust_remote_code" in text
    assert "XForCausalLM" in text


def test_native_families_ignore_shipped_code(folder):
    """Phi-3 names its own Python files as well; the class of transformers is used."""
    (folder / "modeling_x.py").write_text("raise SystemExit('ran foreign code')")
    auto_map = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    edit_config(folder, auto_map=auto_map)
    module = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    assert type(module).__name__ == "LlamaForCausalLM"


def test_quantised_checkpoint(folder):
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "quantised" in refusal(folder)


def test_quantised_tensor(folder):
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].char()}))
    text = refusal(folder)
    assert "lm_head.weight" in text
    assert "I8" in text


def test_pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = refusal(folder)
    assert "pytorch_model.bin" in text
    assert shlex.split(text.split(": ")[-1])[2].endswith(f"('{folder}-safe')")


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (
            "adapter_config.json",
            '{"base_model_name_or_path": "a base"}',
            ["--target", "a base", "--adapter", "FOLDER"],
        ),
        ("adapter_config.json", "{}", ["--target", "BASE", "--adapter", "FOLDER"]),
        ("my m.gguf", "", ["--target", "FOLDER/my m.gguf"]),
    ],
)
def test_a_folder_of_another_kind(checkpoint_of, tmp_path, file, content, words, config):
    """The message names what is there, and its command can be pasted."""
    folder = shutil.copytree(checkpoint_of("llama"), tmp_path / "it's here")
    (folder / "model.safetensors").unlink()
    if not config:
        (folder / "config.json").unlink()
    (folder / file).write_text(content)
    command = refusal(folder).split(": ")[-1]
    words = [word.replace("FOLDER", str(folder)) for word in words]
    assert shlex.split(command) == ["cospec-export", *words]


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(folder)


def test_an_adapter_beside_a_model(folder):
    """transformers would load it or not, as peft is installed or not."""
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 40, 2000, -1])
def test_truncated_weights(folder, length):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    text = refusal(folder)
    assert "model.safetensors is damaged" in text


def test_overwritten_header(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(data)
    assert "model.safetensors is damaged" in refusal(folder)


def shard(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: tensors[n] for n in own}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in parts.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return index


def test_shards(folder):
    whole = open_checkpoint(resolve(str(folder)))
    shard(folder)
    parts = open_checkpoint(resolve(str(folder)))
    assert len(parts.weight_files) == 2
    assert parts.parameters == whole.parameters
    load_module(parts, torch.float32)
    (folder / "model-2.safetensors").unlink()
    text = refusal(folder)
    assert "model-2.safetensors" in text
    assert "missing" in text


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": 3}'],
)
def test_bad_index(folder, content):
    shard(folder).write_text(content)
    assert "index" in refusal(folder) or "names no files" in refusal(folder)


def test_config_missing_or_broken(folder):
    file = folder / "config.json"
    for content in ("{", "[1]", "\x00", "null", '{"a": NaN'):
        file.write_text(content)
        assert "config.json" in refusal(folder)
    file.unlink()
    assert "config.json is missing" in refusal(folder)


def test_config_with_wrong_types(folder):
    edit_config(folder, num_hidden_layers="many")
    assert "config.json" in refusal(folder)


def test_audit_missing_tensor(folder):
    edit_weights(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    text = refusal(folder, load=True)
    assert "1 missing from the files: model.layers.1.mlp.up_proj.weight" in text


def test_audit_left_over_tensor(folder):
    edit_config(folder, num_hidden_layers=1)
    text = refusal(folder, load=True)
    assert "9 in the files but not in the architecture: model.layers.1" in text


def test_audit_shape(folder):
    edit_config(folder, vocab_size=400)
    text = refusal(folder, load=True)
    assert "2 of another shape: lm_head.weight, model.embed_tokens.weight" in text


def test_tied_head_need_not_be_stored(folder):
    edit_config(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda t: t.pop("lm_head.weight"))
    module = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_untied_head_must_be_stored(folder):
    edit_weights(folder, lambda t: t.pop("lm_head.weight"))
    assert "lm_head.weight" in refusal(folder, load=True)


def test_old_buffers_are_no_finding(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda t: t.update({name: torch.ones(8)}))
    load_module(open_checkpoint(resolve(str(folder))), torch.float32)


def test_accelerate_is_silent_while_a_checkpoint_is_read():
    """On a terminal it would say that parameters stay on the disk, as they are meant to."""
    from logging import WARNING, getLogger

    from cospec.models.hf import quiet

    logger = getLogger("accelerate.big_modeling")
    before = logger.isEnabledFor(WARNING)
    with quiet():
        assert not logger.isEnabledFor(WARNING)
    assert logger.isEnabledFor(WARNING) == before
