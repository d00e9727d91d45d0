"""All supported families, with random weights: opened, audited, loaded, run."""

import json

import pytest
import torch
from factories import BOS, EOS, FAMILIES, perturbed, random_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from cospec.export import graph
from cospec.models import families
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve


def test_the_factory_covers_every_family():
    assert set(FAMILIES) == set(families.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_and_load(family, checkpoint_of):
    folder = checkpoint_of(family)
    checkpoint = open_checkpoint(resolve(str(folder)))
    assert checkpoint.family == family
    assert checkpoint.vocab_size == 320
    assert checkpoint.max_positions == 256
    assert (checkpoint.bos_id, checkpoint.eos_ids) == (BOS, (EOS,))
    assert checkpoint.tokenizer.chat_template is None
    assert checkpoint.tokenizer.special_tokens_map["bos_token"] == "<bos>"

    module = load_module(checkpoint, torch.float32)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert checkpoint.parameters == sum(p.numel() for p in module.parameters())
    assert checkpoint.weight_bytes("fp16") == 2 * checkpoint.parameters

    direct = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = AutoTokenizer.from_pretrained(folder)("The capital of", return_tensors="pt").input_ids
    assert torch.equal(module(ids).logits, direct(ids).logits)
    made = module.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert made.shape[1] == ids.shape[1] + 5


def test_half_precision_does_not_touch_the_checkpoint(checkpoint_of):
    checkpoint = open_checkpoint(resolve(str(checkpoint_of("llama"))))
    before = checkpoint.config.to_dict()
    module = load_module(checkpoint, torch.float16, attention="sdpa")
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert module.config._attn_implementation == "sdpa"
    assert checkpoint.config.to_dict() == before


def test_perturbed_copy_is_a_draft(checkpoint_of, tmp_path):
    folder = checkpoint_of("llama")
    copy = perturbed(folder, tmp_path / "draft", noise=0.02)
    target, draft = (
        load_module(open_checkpoint(resolve(str(f))), torch.float32) for f in (folder, copy)
    )
    ids = torch.randint(4, 300, (1, 128), generator=torch.Generator().manual_seed(0))
    agreement = (target(ids).logits.argmax(-1) == draft(ids).logits.argmax(-1)).float().mean()
    assert 0.5 < agreement < 1


def test_ends_are_gathered(checkpoint_of, tmp_path):
    folder = perturbed(checkpoint_of("llama"), tmp_path / "copy")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 1, 9999]}))
    checkpoint = open_checkpoint(resolve(str(folder)))
    assert checkpoint.eos_ids == (3, 1)


def test_longrope_is_limited_to_the_trained_length(tmp_path):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64,
    }
    own = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    folder = random_checkpoint(tmp_path / "phi3", "phi3", overrides=own)
    assert open_checkpoint(resolve(str(folder))).max_positions == 64


def dynamic(family, folder, *, legacy):
    """A checkpoint whose rotation grows with the length of the text, from 128 of 256 tokens on."""
    random_checkpoint(folder, family)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    rope = content.pop("rope_parameters")
    if legacy:
        content["rope_scaling"] = {"type": "dynamic", "factor": 4.0}
        content["rope_theta"] = 10000.0
        if "partial_rotary_factor" in rope:
            content["partial_rotary_factor"] = rope["partial_rotary_factor"]
    else:
        grows = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128}
        nested = any(isinstance(value, dict) for value in rope.values())
        kinds = {kind: settings | grows for kind, settings in rope.items()} if nested else {}
        kept = ("rope_theta", "partial_rotary_factor")
        content["rope_parameters"] = kinds or {k: rope[k] for k in kept if k in rope} | grows
    file.write_text(json.dumps(content))
    return folder


# transformers itself refuses Phi-3 with this kind of rotation; two families have none.
ROTATED = [family for family in FAMILIES if family not in ("gpt2", "opt", "phi3")]


@pytest.mark.parametrize("family", ROTATED)
@pytest.mark.parametrize("legacy", [False, True])
def test_dynamic_rotation_is_static_up_to_the_original_length(family, legacy, tmp_path):
    folder = dynamic(family, tmp_path / family, legacy=legacy)
    checkpoint = open_checkpoint(resolve(str(folder)))
    limit = 256 if legacy else 128
    assert checkpoint.max_positions == limit
    module = load_module(checkpoint, torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert "dynamic" in str(theirs.config.rope_parameters)
    ids = torch.randint(4, 300, (1, limit), generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize(("family", "lowering"), [("llama", "gqa"), ("phi", "portable")])
def test_dynamic_rotation_is_traced(family, lowering, tmp_path):
    folder = dynamic(family, tmp_path / family, legacy=True)
    module = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    assert len(graph.trace(module, lowering, 64, 320).kv_shapes) == 2
