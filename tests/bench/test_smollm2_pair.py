"""Making a draft from some of a model's layers, on a random tiny Llama; and the task files it uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from bench.distillation import (
    Recipe,
    Row,
    agreement,
    answer_states,
    distil,
    distillation_loss,
    shortened,
    subsets,
)
from bench.smollm2_pair import greedy_answers
from bench.smollm2_tasks import WORKED, split, with_worked_examples
from cospec.calibration.tasks import CheckerSpec, Task, check
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve

PAD = 1
LAYERS = 4
KEPT = (0, 2, 3)


@pytest.fixture(scope="module")
def target(checkpoint_of) -> Any:
    folder = checkpoint_of("llama", layers=LAYERS)
    return load_module(open_checkpoint(resolve(str(folder))), torch.float32, attention="sdpa")


@pytest.fixture(scope="module")
def rows(target) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(5, 300, (length,), generator=generator).tolist() for length in (3, 6, 9, 5)
    ]
    return greedy_answers(target, prompts, (PAD,), Recipe(answer_tokens=8))


def test_every_subset_has_as_many_layers_as_asked_for_in_order():
    for total, kept in ((30, 8), (30, 9), (4, 2), (4, 3)):
        for layers in subsets(total, kept).values():
            assert len(layers) == kept
            assert list(layers) == sorted(set(layers))
            assert layers[0] == 0
            assert layers[-1] == total - 1


@pytest.mark.parametrize("kept", [1, 4, 5])
def test_a_subset_of_none_or_all_layers_is_refused(kept):
    with pytest.raises(click.ClickException, match="keep at least 2"):
        subsets(4, kept)


def test_a_shortened_copy_has_the_chosen_layers_and_all_else(target):
    short = shortened(target, KEPT)
    assert short.config.num_hidden_layers == len(KEPT)
    assert target.config.num_hidden_layers == LAYERS
    ours, theirs = short.state_dict(), target.state_dict()
    for i, layer in enumerate(KEPT):
        name = "self_attn.q_proj.weight"
        assert torch.equal(ours[f"model.layers.{i}.{name}"], theirs[f"model.layers.{layer}.{name}"])
    assert f"model.layers.{len(KEPT)}.input_layernorm.weight" not in ours
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(ours[name], theirs[name])


def test_a_copy_of_all_layers_computes_the_same(target):
    whole = shortened(target, range(LAYERS))
    tokens = torch.arange(5, 25).reshape(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, target(tokens).logits)


def test_a_saved_copy_is_a_checkpoint_that_opens(target, tmp_path: Path):
    short = shortened(target, KEPT)
    short.save_pretrained(tmp_path)
    opened = open_checkpoint(resolve(str(tmp_path)))
    assert opened.config.num_hidden_layers == len(KEPT)
    module = load_module(opened, torch.float32, attention="sdpa")
    tokens = torch.arange(5, 25).reshape(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens).logits, short(tokens).logits)


def test_greedy_answers_of_a_padded_batch_are_those_of_each_prompt_alone(target, rows):
    for row in rows:
        ids = torch.tensor([row.prompt])
        out = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=PAD,
            pad_token_id=PAD,
        )
        assert row.answer == out[0, ids.shape[1] :].tolist()


def test_states_in_front_of_the_answers_do_not_depend_on_the_batch(target, rows):
    together = answer_states(target, rows, PAD)
    apart = torch.cat([answer_states(target, [row], PAD) for row in rows])
    assert together.shape == (sum(len(row.answer) for row in rows), target.config.hidden_size)
    torch.testing.assert_close(together, apart)


def test_a_beginning_that_all_prompts_share_changes_nothing(target, rows):
    worked = list(range(20, 40))
    longer = [Row([*worked, *row.prompt], row.answer) for row in rows]
    apart = torch.cat([answer_states(target, [row], PAD) for row in longer])
    torch.testing.assert_close(answer_states(target, longer, PAD), apart)
    whole = torch.tensor([[*longer[0].prompt, *longer[0].answer]])
    states = target.model(input_ids=whole, use_cache=False).last_hidden_state[0]
    ours = answer_states(target, longer, PAD)[: len(rows[0].answer)]
    torch.testing.assert_close(ours, states[len(longer[0].prompt) - 1 : -1])


def test_a_model_agrees_with_itself_wholly(target, rows):
    assert agreement(target, rows, 3, PAD) == 1.0
    taught = answer_states(target, rows, PAD)
    assert float(distillation_loss(target, rows, taught, PAD)) == pytest.approx(0, abs=1e-6)


def test_distillation_lowers_the_divergence_and_leaves_embedding_and_head(target, rows):
    draft = shortened(target, (0, 3))
    taught = [answer_states(target, [row], PAD) for row in rows]
    recipe = Recipe(layers=2, epochs=15, batch=4, learning_rate=3e-3)
    losses = distil(draft, rows, taught, recipe, PAD)
    assert len(losses) == recipe.epochs
    assert losses[-1] < 0.5 * losses[0]
    ours, theirs = draft.state_dict(), target.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(ours[name], theirs[name])
    trained = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(ours[trained], theirs["model.layers.3.mlp.down_proj.weight"])


def test_the_learning_rate_rises_and_falls():
    recipe = Recipe(learning_rate=1.0)
    rates = [recipe.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] < rates[4] > rates[50] > rates[99] > 0
    assert max(rates) <= 1.0


def a_task(number: int) -> Task:
    asked = ({"role": "user", "content": f"What is {number} + 3?"},)
    return Task(f"t{number}", asked, CheckerSpec("number"), number + 3)


def test_worked_examples_are_turns_in_front_and_their_answers_pass_the_checker():
    task = with_worked_examples(a_task(1))
    assert task.prompt[-1] == a_task(1).prompt[0]
    roles = [turn["role"] for turn in task.prompt]
    assert roles == ["user", "assistant"] * len(WORKED) + ["user"]
    for _, answer in WORKED:
        gold = answer.split()[-1]
        assert check(Task("w", "?", CheckerSpec("number"), gold), answer)


def test_a_task_without_a_chat_is_refused():
    with pytest.raises(click.ClickException, match="not a chat"):
        with_worked_examples(Task("t", "2 + 3 =", CheckerSpec("number"), "5"))


def test_parts_hold_as_many_as_asked_for_and_none_twice():
    tasks = [a_task(i) for i in range(10)]
    parts = split(tasks, [("train", 6), ("test", 3)])
    ids = [task.id for part in parts.values() for task in part]
    assert [len(part) for part in parts.values()] == [6, 3]
    assert len(set(ids)) == 9
    for wrong in ([("train", 11)], [("a", 1), ("a", 1)]):
        with pytest.raises(click.ClickException, match="different names"):
            split(tasks, wrong)


def test_a_question_that_occurs_twice_is_in_one_part_only():
    tasks = [a_task(1), a_task(2), replace(a_task(1), id="again")]
    with pytest.raises(click.ClickException, match="2 are there"):
        split(tasks, [("train", 2), ("test", 1)])
    parts = split(tasks, [("train", 1), ("test", 1)])
    assert parts["train"][0].prompt != parts["test"][0].prompt
