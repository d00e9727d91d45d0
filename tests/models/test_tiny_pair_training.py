from dataclasses import replace
from itertools import islice

import click
import pytest
import torch
from safetensors.torch import load_file

from cospec.models.tiny_pair.pair_tokenizer import build_tokenizer
from cospec.models.tiny_pair.recipes import RECIPES
from cospec.models.tiny_pair.train import Run, batches, train

SMALL = replace(RECIPES["draft"], batch=4, steps=3, layers=1, warmup_steps=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_resumed_run_ends_with_the_same_bits(tmp_path):
    train(SMALL, tmp_path / "whole", save_every=100)
    train(SMALL, tmp_path / "parts", minutes=1e-9)
    assert Run(SMALL, build_tokenizer()).step == 0
    for _ in range(3):
        run = train(SMALL, tmp_path / "parts", minutes=1e-9)
    assert run.step == 3
    whole, parts = (
        load_file(tmp_path / name / "draft" / "model.safetensors") for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_batches_do_not_depend_on_where_one_starts():
    tokenizer = build_tokenizer()
    recipe = replace(SMALL, steps=20)
    late = list(batches(recipe, tokenizer, 13))
    assert len(late) == 7
    for (tokens, labels), (again, relabels) in zip(
        islice(batches(recipe, tokenizer, 0), 13, None), late, strict=True
    ):
        assert torch.equal(tokens, again)
        assert torch.equal(labels, relabels)


def test_only_the_answer_is_learned():
    tokenizer = build_tokenizer()
    tokens, labels = next(batches(SMALL, tokenizer, 0))
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        learned = [t for t, label in zip(row, wanted, strict=True) if label != -100]
        text = tokenizer.decode(row, skip_special_tokens=True)
        assert learned[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(learned, skip_special_tokens=True) == text.split("A:", 1)[1]


def test_state_of_another_recipe_is_refused(tmp_path):
    train(SMALL, tmp_path)
    with pytest.raises(click.ClickException, match="another recipe"):
        train(replace(SMALL, learning_rate=1e-5), tmp_path)
    with pytest.raises(click.ClickException, match="another recipe"):
        train(replace(SMALL, steps=9), tmp_path)


def test_learning_rate_warms_up_holds_and_decays():
    recipe = replace(SMALL, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:71]) == {1.0}
    assert rates[-1] == pytest.approx(1 / 30)
