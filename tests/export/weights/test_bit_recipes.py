"""What recipes cost is what transformers measures of a module with their numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cospec.export.weights.bit_recipes import matrices_of, measure, token_count
from cospec.export.weights.quantised_weights import quantise
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.models.weights.streamed_model import streamed_model

FAMILIES = ["llama", "gpt2", "gemma2", "gemma3_text", "gpt_neox", "opt", "phi", "phi3", "qwen2"]


def perplexity(module, windows):
    """Return the perplexity as transformers' own loss has it."""
    ids = torch.tensor(windows)
    with torch.no_grad():
        logits = module(ids).logits[:, :-1].float()
    return float(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_each_recipe_costs_what_its_numbers_cost(checkpoint_of, family):
    checkpoint = open_checkpoint(resolve(str(checkpoint_of(family, layers=3))))
    windows = np.random.default_rng(0).integers(0, 300, (2, 24)).tolist()
    with streamed_model(checkpoint, torch.float32) as model:
        matrices = matrices_of(model.hollow)
        recipes = matrices.recipes("int4")
        found = measure(model.module, model.weights, matrices, recipes, windows)
    own, rises = found.perplexity, found.rises
    assert [recipe.name for recipe in recipes] == [
        "int4",
        "int4 with sensitive matrices in int8",
        "int8",
    ]
    plain = load_module(checkpoint, torch.float32)
    embedding = plain.get_input_embeddings().weight
    assert own == pytest.approx(perplexity(plain, windows), rel=1e-5)
    for recipe, rise in zip(recipes, rises, strict=True):
        module = load_module(checkpoint, torch.float32)
        for name, bits in recipe.bits.items():
            parameter = module.get_parameter(name)
            matrix = parameter.data.T if name in matrices.transposed else parameter.data
            importance = found.importance.get(name)
            blocks = quantise(np.ascontiguousarray(matrix.numpy()), bits, importance)
            rounded = torch.from_numpy(blocks.matrix())
            parameter.data = rounded.T if name in matrices.transposed else rounded
        # An embedding is measured in full precision, also where it is the head.
        module.get_input_embeddings().weight = torch.nn.Parameter(embedding.data)
        assert own * (1 + rise) == pytest.approx(perplexity(module, windows), rel=1e-5)
    assert len(set(rises)) == 3


def test_the_ends_and_the_last_products_are_sensitive(checkpoint_of):
    checkpoint = open_checkpoint(resolve(str(checkpoint_of("llama", layers=3))))
    with streamed_model(checkpoint, torch.float32) as model:
        matrices = matrices_of(model.hollow)
    plain, mixed, wide = (recipe.bits for recipe in matrices.recipes("int4"))
    assert {name for name in plain if plain[name] == 8} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }
    assert {name for name in mixed if mixed[name] == 4} == {
        f"model.layers.1.{name}.weight"
        for name in (
            *(f"self_attn.{kind}_proj" for kind in "qkvo"),
            "mlp.gate_proj",
            "mlp.up_proj",
        )
    }
    assert set(wide.values()) == {8}
    assert [recipe.name for recipe in matrices.recipes("int8")] == ["int8"]


def test_large_models_read_fewer_tokens():
    counts = [token_count(parameters, 3) for parameters in (10**8, 10**9, 10**10, 10**12)]
    assert counts[0] == 2048
    assert counts[-1] == 256
    assert counts == sorted(counts, reverse=True)
