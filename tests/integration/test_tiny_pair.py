"""The tiny pair from preset to output: 500 held-out problems, answered exactly as the target would."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.models.presets import resolve_pair
from cospec.runtime.decoding.completion import Completion
from cospec.runtime.decoding.session import Session, load
from cospec.runtime.decoding.stats import GenerationStats

PRESET, TASKS = "tiny", "cospec.models.tiny_pair.tasks"
SEED, PROBLEMS, BY_GENERATE = 2026, 500, 20
MAX_TOKENS = 96


@dataclass(frozen=True)
class Answer:
    """One prompt with what the speculative loop made of it."""

    prompt: list[int]
    completion: Completion


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(ExportOptions(PRESET), tmp_path_factory.mktemp("models") / PRESET)


@pytest.fixture(scope="module")
def module() -> Any:
    from transformers import AutoModelForCausalLM

    folder = resolve_pair(PRESET)[0].location
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def answers(bundle: Path) -> list[Answer]:
    tasks = importlib.import_module(TASKS)
    session = load(bundle)
    prompts = [tasks.prompt(problem) for problem in tasks.distinct("test", SEED, PROBLEMS)]
    return [
        Answer(session.codec.encode(prompt), session.generate(prompt, max_tokens=MAX_TOKENS))
        for prompt in prompts
    ]


def test_every_token_of_500_answers_is_the_targets_own(answers, module):
    assert len(answers) == PROBLEMS
    for answer in answers:
        assert argmax_after(module, answer) == answer.completion.tokens


def test_threshold_one_is_strict_in_500_answers(bundle, answers):
    session = load(bundle)
    for answer in answers:
        found = judged(session, answer, threshold=1.0)
        assert found.tokens == answer.completion.tokens


def judged(session: Session, answer: Answer, threshold: float) -> Completion:
    """Answer in `collab`, and read the whole prompt again."""
    session.forget()
    options = {"mode": "collab", "threshold": threshold, "max_tokens": MAX_TOKENS}
    return session.generate(answer.prompt, **options)


def test_acceptance_falls_as_the_threshold_rises(bundle, answers):
    session = load(bundle)
    rates = []
    for threshold in (0.0, 0.25, 0.5, 0.75, 1.0):
        played = [judged(session, answer, threshold) for answer in answers[:40]]
        accepted = sum(completion.stats.num_accepted_tokens for completion in played)
        rates.append(accepted / sum(completion.stats.num_draft_tokens for completion in played))
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_answers_equal_generate(answers, module):
    eos = module.generation_config.eos_token_id
    assert {answer.completion.finish_reason for answer in answers} <= {"eos", "length"}
    for answer in answers[:BY_GENERATE]:
        ids = torch.tensor([answer.prompt])
        whole = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            pad_token_id=eos,
        )
        assert answer.completion.tokens == whole[0, len(answer.prompt) :].tolist()


def test_the_text_is_what_the_checkpoints_own_tokenizer_says(answers):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_pair(PRESET)[0].location)
    for answer in answers[:BY_GENERATE]:
        text = tokenizer.decode(answer.completion.tokens, skip_special_tokens=True)
        assert answer.completion.text == text


def test_the_draft_is_worth_having(answers):
    stats = [answer.completion.stats for answer in answers]
    drafted = sum(each.num_draft_tokens for each in stats)
    accepted = sum(each.num_accepted_tokens for each in stats)
    assert 0.5 < accepted / drafted < 0.95
    tokens = sum(each.num_generated_tokens for each in stats)
    assert tokens / sum(each.num_target_passes for each in stats) > 1.8


def test_the_counters_add_up(answers):
    for answer in answers:
        check_counters(answer.completion, answer.completion.stats)


def check_counters(completion: Completion, stats: GenerationStats) -> None:
    who = completion.provenance
    assert stats.num_generated_tokens == len(completion.tokens) == len(who)
    assert stats.num_accepted_tokens == who.count("agreed")
    # Every pass yields one token that is not a drafted one, except where a drafted one ends the text.
    closing = completion.finish_reason == "eos" and who[-1] == "agreed"
    assert stats.num_target_passes == len(who) - who.count("agreed") + closing
    assert sum(stats.num_draft_tokens_per_pos) == stats.num_draft_tokens
    assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_tokens


def argmax_after(module: Any, answer: Answer) -> list[int]:
    """What the module would say at each position of the answer, given all before it.

    Equal to the answer itself, it proves by induction that the answer is the greedy output.
    """
    whole = torch.tensor([answer.prompt + answer.completion.tokens])
    with torch.no_grad():
        logits = module(input_ids=whole, use_cache=False).logits[0]
    choices: list[int] = logits[len(answer.prompt) - 1 : -1].argmax(-1).tolist()
    return choices
