"""LoRA adapters: merged, they compute what peft computes; what does not fit is refused."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cospec.errors import CheckpointError
from cospec.export import cli
from cospec.models.adapter import WEIGHTS
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.models.source import Source
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_adapter(base, folder, *, base_name=None, **settings):
    """Write a random LoRA adapter of a checkpoint as peft saves it; return the adapted model."""
    import peft

    module = load_module(open_checkpoint(resolve(str(base))), torch.float32)
    module.name_or_path = base_name or str(base)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": LINEAR} | settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(module, peft.LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


@pytest.fixture(scope="module")
def base(checkpoint_of):
    return checkpoint_of("llama", layers=1)


@pytest.fixture
def adapter(base, tmp_path):
    write_adapter(base, tmp_path / "lora")
    return tmp_path / "lora"


def opened(base, adapter):
    return open_checkpoint(resolve(str(base)), adapter)


def logits(module):
    with torch.no_grad():
        return module(torch.arange(40).unsqueeze(0)).logits


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ["q_proj", "lm_head"]}],
    ids=["plain", "rslora", "dora", "head"],
)
def test_the_merged_model_computes_what_peft_does(base, tmp_path, settings):
    wrapped = write_adapter(base, tmp_path / "lora", **settings)
    beside = logits(wrapped)
    merged = load_module(opened(base, tmp_path / "lora"), torch.float32)
    plain = load_module(open_checkpoint(resolve(str(base))), torch.float32)
    assert torch.allclose(logits(merged), beside, atol=1e-4)
    assert torch.equal(logits(merged), logits(wrapped.merge_and_unload()))
    assert not torch.allclose(logits(plain), beside, atol=0.1)
    assert set(dict(merged.named_parameters())) == set(dict(plain.named_parameters()))


def test_a_whole_export_with_two_adapters(base, adapter, tmp_path):
    output = tmp_path / "bundle"
    command = ["--target", base, "--adapter", adapter, "--draft", base, "--draft-adapter", adapter]
    words = [*command, "--capacity", "64", "--output", output]
    result = CliRunner().invoke(cli.main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(output)
    models = bundle.manifest.models
    label = f"{base.name} with the adapter {adapter.name} (trained on {base.name})"
    assert models.target.source == models.draft.source == label
    session = load(bundle.root)
    module = load_module(opened(base, adapter), torch.float32)
    ids = torch.tensor([session.codec.encode("The capital")])
    expected = module.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=1)
    made = session.generate("The capital", max_tokens=8)
    assert made.tokens == expected[0, ids.shape[1] :].tolist()
    assert made.stats.num_accepted_tokens == made.stats.num_draft_tokens > 0


def refusal(base, adapter, *, load=False):
    if load:
        checkpoint = opened(base, adapter)
        with pytest.raises(CheckpointError) as caught:
            load_module(checkpoint, torch.float32)
    else:
        with pytest.raises(CheckpointError) as caught:
            opened(base, adapter)
    return str(caught.value)


def edit(adapter, **changes):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_adapter_of_another_shape(base, checkpoint_of, tmp_path):
    other = checkpoint_of("llama", overrides={"hidden_size": 128})
    write_adapter(other, tmp_path / "lora")
    assert "does not fit LlamaForCausalLM" in refusal(base, tmp_path / "lora", load=True)


def test_an_adapter_of_another_depth(base, checkpoint_of, tmp_path):
    write_adapter(checkpoint_of("llama"), tmp_path / "lora")
    text = refusal(base, tmp_path / "lora", load=True)
    assert "14 too many: base_model.model.model.layers.1." in text


def test_an_adapter_of_another_family(checkpoint_of, adapter):
    assert "does not fit" in refusal(checkpoint_of("gpt2"), adapter, load=True)


def test_an_adapter_with_a_tensor_missing(base, adapter):
    tensors = load_file(adapter / WEIGHTS)
    del tensors[min(tensors)]
    save_file(tensors, adapter / WEIGHTS)
    assert "1 missing: base_model" in refusal(base, adapter, load=True)


def test_an_adapter_that_is_cut_off(base, adapter):
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-9])
    assert str(adapter) in refusal(base, adapter, load=True)


def test_a_tied_embedding_cannot_be_merged(checkpoint_of, tmp_path):
    base = checkpoint_of("gemma2", layers=1)
    write_adapter(base, tmp_path / "lora", target_modules=["embed_tokens"])
    assert "computes something else" in refusal(base, tmp_path / "lora", load=True)


def test_weights_as_a_pickle(base, adapter):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "pickle" in refusal(base, adapter)


def test_another_kind_of_adapter(base, adapter):
    edit(adapter, peft_type="IA3")
    assert "IA3" in refusal(base, adapter)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_configuration(base, adapter, content):
    (adapter / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refusal(base, adapter) or "None" in refusal(base, adapter)


def test_no_adapter(base, tmp_path):
    assert "adapter_config.json is missing" in refusal(base, tmp_path)


def test_a_gguf_file_takes_no_adapter(adapter, tmp_path):
    from gguf_files import SPM_TOKENS, write_gguf

    file = write_gguf(tmp_path / "m.gguf", SPM_TOKENS, ggml__bos_token_id=1, ggml__eos_token_id=2)
    assert "no adapter can be merged" in refusal(file, adapter)


@pytest.mark.parametrize(
    ("target", "base_name", "fits"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", True),
        ("Qwen/Qwen2.5-0.5B-Instruct", "unsloth/qwen2.5-0.5b-instruct-bnb-4bit", True),
        ("Qwen/Qwen2.5-0.5B-Instruct", None, True),
        ("Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.2-1B", False),
    ],
)
def test_the_name_of_the_base_model(adapter, target, base_name, fits):
    from cospec.models.adapter import read_adapter

    edit(adapter, base_model_name_or_path=base_name)
    source = Source("a preset", "hub", target)
    if fits:
        assert read_adapter(adapter, source).base == (base_name or "")
        return
    with pytest.raises(CheckpointError, match=r"was trained on meta-llama/Llama-3\.2-1B"):
        read_adapter(adapter, source)


def test_a_draft_adapter_needs_a_draft(base, adapter, tmp_path):
    words = ["--target", base, "--draft", "none", "--draft-adapter", adapter]
    result = CliRunner().invoke(cli.main, [*map(str, words), "--output", str(tmp_path / "b")])
    assert result.exit_code == 2
    assert "needs a draft" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
