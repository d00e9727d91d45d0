"""`BundleForCausalLM` takes transformers' arguments and returns what transformers returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextStreamer

import cospec
from cospec.models.tiny_pair import path

QUESTIONS = (
    "Mia has 58 keys and Sam 55 more than Mia. How many in all?",
    "What is 625 times 4?",
    "12",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = AutoTokenizer.from_pretrained(path("target"), padding_side="left")
    made.pad_token = made.pad_token or made.eos_token
    return made


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(path("target"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(tiny_pair_bundle: Path) -> cospec.BundleForCausalLM:
    return cospec.BundleForCausalLM.from_pretrained(tiny_pair_bundle).eval()


@pytest.fixture
def agree(reference: Any, model: Any, tokenizer: Any) -> Callable[..., torch.Tensor]:
    """Check that both generate the same ids, and return them."""

    def check(inputs: Any, **arguments: Any) -> torch.Tensor:
        arguments = {"pad_token_id": tokenizer.pad_token_id, **arguments}
        with torch.no_grad():
            expected = reference.generate(**inputs, **arguments)
        found = model.generate(**inputs, **arguments)
        assert isinstance(found, torch.Tensor)
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()
        return found

    return check


def test_a_batch_with_padding_gives_the_ids_of_transformers(agree, tokenizer):
    inputs = tokenizer(list(QUESTIONS), return_tensors="pt", padding=True)
    assert inputs["attention_mask"].sum() < inputs["input_ids"].numel(), "there is padding"
    found = agree(inputs, max_new_tokens=40, do_sample=False)
    assert found.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 7, "do_sample": False},
        {"max_length": 50, "do_sample": False},
        {"max_new_tokens": 40, "do_sample": False, "repetition_penalty": 1.3},
        {"generation_config": GenerationConfig(max_new_tokens=9, do_sample=False)},
        {"max_new_tokens": 40, "do_sample": True, "top_k": 1},
    ],
    ids=["max_new_tokens", "max_length", "penalty", "generation_config", "top_k"],
)
def test_arguments_mean_what_they_mean_in_transformers(agree, tokenizer, arguments):
    agree(tokenizer(QUESTIONS[0], return_tensors="pt"), **arguments)


def test_an_end_token_and_a_stop_text_of_the_caller_end_the_output(agree, tokenizer):
    inputs = tokenizer(QUESTIONS[0], return_tensors="pt")
    whole = agree(inputs, max_new_tokens=40, do_sample=False)[0]
    start = inputs["input_ids"].shape[1]
    end = int(whole[start + 3])
    ends = [tokenizer.eos_token_id, end]
    short = agree(inputs, max_new_tokens=40, do_sample=False, eos_token_id=ends)[0]
    assert int(short[-1]) == end
    assert len(short) < len(whole)
    stop = tokenizer.decode(whole[start + 2 : start + 4])
    arguments = {"stop_strings": stop, "tokenizer": tokenizer, "max_new_tokens": 40}
    assert len(agree(inputs, do_sample=False, **arguments)[0]) < len(whole)


def test_a_streamer_gets_the_prompt_and_then_the_text(model, tokenizer):
    class Recorder(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    recorder = Recorder(tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = tokenizer(QUESTIONS[0], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False, streamer=recorder)
    new = output[0][inputs["input_ids"].shape[1] :]
    assert recorder.text == tokenizer.decode(new, skip_special_tokens=True)
    both = tokenizer(list(QUESTIONS[:2]), return_tensors="pt", padding=True)
    with pytest.raises(cospec.UsageError, match="one row"):
        model.generate(**both, streamer=recorder)


def test_a_seed_repeats_a_draw_and_arrays_stay_arrays(model, tokenizer):
    ids = np.asarray([tokenizer(QUESTIONS[0])["input_ids"]])
    draws = [
        model.generate(ids, do_sample=True, temperature=1.5, max_new_tokens=30, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert isinstance(draws[0], np.ndarray)
    assert draws[0].tolist() == draws[1].tolist()
    assert draws[0].tolist() != draws[2].tolist()
    assert draws[0][0, : ids.shape[1]].tolist() == ids[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"attention_mask": [[1]]}, cospec.PromptError, "another shape"),
        ({"temperature": -1.0}, cospec.UsageError, "temperature"),
        ({"num_beams": 4}, TypeError, "num_beams"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model, arguments, error, says):
    with pytest.raises(error, match=says):
        model.generate([[1, 2, 3]], **arguments)


def test_the_mode_of_the_model_reaches_the_session(model):
    collab = cospec.BundleForCausalLM(model.session.new_session(), mode="collab")
    with pytest.raises(cospec.UsageError, match="this bundle has no arbiter"):
        collab.generate([[1, 2, 3]])
