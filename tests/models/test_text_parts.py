"""Models of pictures and text: their text part is exported, and computes what the whole model does."""

import json
import re

import pytest
import torch
import transformers
from factories import write_tokenizer
from safetensors.torch import load_file, save_file

from cospec.errors import CheckpointError
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load

TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Wrapper -> (text model, vision model).
WRAPPERS = {
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "mistral3": ("mistral", "pixtral"),
    "llava": ("llama", "clip_vision_model"),
    "llava_onevision": ("qwen2", "siglip_vision_model"),
    "smolvlm": ("llama", "smolvlm_vision"),
    "internvl": ("qwen2", "internvl_vision"),
    "paligemma": ("gemma2", "siglip_vision_model"),
    "aya_vision": ("cohere2", "siglip_vision_model"),
}
SUPPORTED = [name for name in WRAPPERS if name not in ("paligemma", "aya_vision")]


def write_wrapper(folder, name):
    """Write a random wrapper; return the whole model."""
    text, vision = WRAPPERS[name]
    sizes = VISION | (
        {"image_size": [28, 28], "patch_size": [14, 14]} if name == "internvl" else {}
    )
    config = transformers.CONFIG_MAPPING[name](
        text_config={"model_type": text, **TEXT}, vision_config={"model_type": vision, **sizes}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model.eval()


def rename(folder, change):
    file = folder / "model.safetensors"
    tensors = {change(name): tensor.contiguous() for name, tensor in load_file(file).items()}
    save_file({k: v for k, v in tensors.items() if k}, file, metadata={"format": "pt"})


def opened(folder):
    return open_checkpoint(resolve(str(folder)))


OLD, NEW = r"^model\.(language_model|text_model)\.", r"^(language_model|text_model)\.model\."


@pytest.mark.parametrize("layout", ["as saved", "old", "new"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_the_text_part_computes_what_the_whole_model_does(name, layout, tmp_path):
    """The names of these weights changed over time: language_model.model.x, model.language_model.x."""
    whole = write_wrapper(tmp_path / name, name)
    if layout == "old":
        rename(tmp_path / name, lambda key: re.sub(OLD, r"\1.model.", key))
    elif layout == "new":
        rename(tmp_path / name, lambda key: re.sub(NEW, r"model.\1.", key))
    checkpoint = opened(tmp_path / name)
    assert checkpoint.family == WRAPPERS[name][0]
    assert checkpoint.vocab_size == 320
    assert checkpoint.eos_ids == (1,)
    module = load_module(checkpoint, torch.float32)
    assert checkpoint.parameters == sum(p.numel() for p in module.parameters())
    ids = torch.randint(4, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(module(ids).logits, whole(input_ids=ids).logits, atol=1e-5)


def test_a_whole_export(tmp_path):
    whole = write_wrapper(tmp_path / "gemma3", "gemma3")
    options = ExportOptions(str(tmp_path / "gemma3"), draft="none", capacity=64)
    bundle = Bundle.open(export_bundle(options, tmp_path / "bundle"))
    assert bundle.manifest.models.target.architecture == "Gemma3ForCausalLM"
    session = load(bundle.root)
    ids = torch.tensor([session.codec.encode("The capital of France")])
    whole.generation_config.eos_token_id = list(bundle.manifest.generation.eos_token_ids)
    expected = whole.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=1)
    output = session.generate("The capital of France", max_tokens=8)
    assert output.tokens == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["paligemma", "aya_vision"])
def test_what_no_causal_decoder_of_ours_computes_is_refused(name, tmp_path):
    write_wrapper(tmp_path / name, name)
    with pytest.raises(CheckpointError, match=f"{name}.* is not supported"):
        opened(tmp_path / name)


def test_a_missing_text_weight_is_refused(tmp_path):
    write_wrapper(tmp_path / "llava", "llava")
    rename(tmp_path / "llava", lambda key: None if key.endswith("1.mlp.up_proj.weight") else key)
    with pytest.raises(CheckpointError, match=r"1 missing from the files: .*mlp\.up_proj"):
        load_module(opened(tmp_path / "llava"), torch.float32)


def test_a_text_weight_too_many_is_refused(tmp_path):
    write_wrapper(tmp_path / "llava", "llava")
    file = tmp_path / "llava" / "config.json"
    content = json.loads(file.read_text())
    content["text_config"]["num_hidden_layers"] = 1
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="9 in the files but not in the architecture"):
        load_module(opened(tmp_path / "llava"), torch.float32)


@pytest.mark.parametrize(("stored", "tied"), [(True, False), (False, True)])
def test_the_head_is_tied_where_the_files_hold_none(stored, tied, tmp_path):
    whole = write_wrapper(tmp_path / "gemma3", "gemma3")
    if stored:
        file = tmp_path / "gemma3" / "model.safetensors"
        head = {"lm_head.weight": torch.randn(320, 64)}
        save_file({**load_file(file), **head}, file, metadata={"format": "pt"})
    module = load_module(opened(tmp_path / "gemma3"), torch.float32)
    assert (module.lm_head.weight is module.model.embed_tokens.weight) == tied
    assert torch.equal(module.model.embed_tokens.weight, whole.get_input_embeddings().weight)
