"""A loaded bundle against transformers, and the object that applications embed."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import cospec
from cospec.errors import BackendError, BundleError, PromptError, UsageError
from cospec.runtime.arbitration.baselines import AlwaysDraft
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.completion import Completion
from cospec.runtime.decoding.session import Session
from cospec.runtime.engines.onnxruntime import OrtOptions

NEW_TOKENS = 24
OPTIONS = OrtOptions(threads=1, provider="cpu")
DRAFTERS = ("model", "ngram", "none")
WORDS = ["the", "block", "of", "tokens", "12 + 30 =", "42", "Paris,", "verifies", "é", "你", "🙂"]
PROMPTS = [
    " ".join(WORDS[(i * 5 + j * 3) % len(WORDS)] for j in range(1 + i % 7)) for i in range(20)
]


@pytest.fixture(scope="module")
def sessions(tiny_bundle: Any) -> dict[str, Session]:
    root = tiny_bundle.root
    return {name: cospec.load(root, drafter=name, options=OPTIONS) for name in DRAFTERS}


@pytest.fixture(scope="module")
def session(sessions: dict[str, Session]) -> Session:
    return sessions["model"]


@pytest.fixture(scope="module")
def references(tiny_bundle: Any, session: Session) -> dict[str, list[int]]:
    """What `transformers` generates greedily."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_bundle.target).eval()
    found = {}
    for prompt in PROMPTS:
        ids = torch.tensor([session.codec.encode(prompt)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=1,
        )
        found[prompt] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.fixture
def long_prompt(session: Session) -> Callable[[int], str]:
    """Make text of exactly so many tokens."""

    def make(tokens: int) -> str:
        text = "0" * tokens
        assert len(session.codec.encode(text)) == tokens
        return text

    return make


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_guard_changes_no_token(sessions, references, drafter):
    for prompt in PROMPTS:
        found = sessions[drafter].generate(prompt, max_tokens=NEW_TOKENS, num_draft_tokens="auto")
        assert found.tokens == references[prompt], prompt


def test_the_guard_is_for_strict_mode_only(session):
    with pytest.raises(UsageError, match="'auto' goes with the mode 'strict' only"):
        session.generate("a", mode="collab", arbiter=AlwaysDraft(), num_draft_tokens="auto")


@pytest.mark.parametrize("k", [0, 1, 3, 5])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_strict_output_is_the_greedy_output_of_transformers(sessions, references, drafter, k):
    session = sessions[drafter]
    drafted = accepted = 0
    for prompt in PROMPTS:
        found = session.generate(prompt, max_tokens=NEW_TOKENS, num_draft_tokens=k)
        assert found.tokens == references[prompt], prompt
        assert found.finish_reason == ("eos" if found.tokens[-1] == 1 else "length")
        whole = session.codec.decode(session.codec.encode(prompt) + found.tokens)
        assert prompt + found.text == whole
        drafted += found.stats.num_draft_tokens
        accepted += found.stats.num_accepted_tokens
    if k == 0 or drafter == "none":
        assert drafted == 0
    elif drafter == "model":
        assert 0.1 < accepted / drafted < 0.95, "both accepted and rejected blocks were tested"


def check_counters(found: Completion, prompt_tokens: int) -> None:
    stats, who = found.stats, found.provenance
    assert len(who) == len(found.tokens) == stats.num_generated_tokens
    assert stats.num_prompt_tokens == prompt_tokens
    assert stats.num_accepted_tokens == who.count("agreed")
    assert stats.num_target_passes >= len(who) - who.count("agreed")
    assert sum(stats.num_draft_tokens_per_pos) == stats.num_draft_tokens
    assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_tokens
    assert stats.num_drafts == (stats.num_draft_tokens_per_pos or [0])[0]
    assert stats.ttft > 0


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_stream_is_the_same_generation_in_pieces(sessions, drafter):
    session = sessions[drafter]
    for prompt in PROMPTS[:6]:
        whole = session.generate(prompt, max_tokens=NEW_TOKENS)
        stream = session.stream(prompt, max_tokens=NEW_TOKENS)
        assert stream.finish_reason is None
        pieces = list(stream)
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert [who for piece in pieces for who in piece.provenance] == whole.provenance
        assert stream.finish_reason == whole.finish_reason
        summed = stream.completion()
        assert (summed.text, summed.tokens) == (whole.text, whole.tokens)
        assert stream.prompt_tokens == tuple(session.codec.encode(prompt))
        assert len(pieces) == summed.stats.num_target_passes
        check_counters(whole, len(stream.prompt_tokens))
        check_counters(summed, len(stream.prompt_tokens))


def test_a_completion_is_plain_json(session):
    found = session.generate(PROMPTS[3], max_tokens=5)
    plain = found.to_json()
    assert plain == json.loads(json.dumps(plain))
    assert list(plain) == ["text", "tokens", "provenance", "finish_reason", "stats"]
    assert plain["tokens"] == found.tokens
    assert plain["stats"]["num_generated_tokens"] == len(found.tokens) <= 5


def test_defaults_come_from_the_bundle(session):
    defaults = session.manifest.generation
    found = session.generate(PROMPTS[0])
    assert len(found.stats.num_draft_tokens_per_pos) == defaults.num_draft_tokens == 3
    assert (defaults.max_tokens, defaults.prefill_chunk) == (64, 64)
    # A cache of 64 ends the text before 64 new tokens do.
    assert found.finish_reason in ("capacity", "eos")
    total = len(found.tokens) + found.stats.num_prompt_tokens
    assert total == 65 or found.finish_reason == "eos"


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_prompt_of_exactly_the_capacity(sessions, long_prompt, drafter):
    found = sessions[drafter].generate(long_prompt(64))
    assert len(found.tokens) == 1
    assert found.finish_reason in ("capacity", "eos")
    with pytest.raises(PromptError, match="65 tokens, this bundle holds 64") as caught:
        sessions[drafter].generate(long_prompt(65))
    assert "--capacity" in caught.value.hint
    assert len(sessions[drafter].generate(long_prompt(63)).tokens) <= 2


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt(session, prompt):
    with pytest.raises(PromptError, match="empty"):
        session.generate(prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, but must be at least 1"),
        ({"max_tokens": -5}, "max_tokens is -5"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1, but must be at least 0"),
        ({"mode": "oracle"}, "unknown mode 'oracle'"),
        ({"mode": "collab"}, "this bundle has no arbiter"),
        ({"threshold": 0.5}, "in the mode 'collab' only"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_runs(session, arguments, message):
    for call in (session.generate, session.stream):
        with pytest.raises(UsageError, match=message):
            call("x", **arguments)


def test_messages_are_rendered_with_the_template(session):
    messages = [{"role": "user", "content": "12 + 30"}]
    found = session.generate(messages, max_tokens=8)
    tokens = [0, 2, *session.codec.encode("12 + 30"), 3]
    assert found.stats.num_prompt_tokens == len(tokens)
    as_text = session.generate("<bos><|user|>12 + 30<|assistant|>", max_tokens=8)
    assert as_text.tokens == found.tokens


def without(tiny_bundle: Any, tmp_path: Any, *names: str) -> Bundle:
    """Copy the bundle without its draft or its template, sealed again."""
    from msgspec.structs import replace

    from cospec.runtime.bundle.manifest import Models
    from cospec.runtime.bundle.writer import BundleWriter

    whole = Bundle.open(tiny_bundle.root)
    kept = [e.path for e in whole.manifest.files if not any(name in e.path for name in names)]
    with BundleWriter(tmp_path / "part") as writer:
        for relative in kept:
            shutil.copy(whole.path(relative), writer.path(relative))
        models = whole.manifest.models
        manifest = replace(
            whole.manifest,
            files=(),
            models=Models(models.target, None if "draft" in names else models.draft),
            chat_template=None if "chat" in names else whole.manifest.chat_template,
        )
        return writer.commit(manifest)


def test_a_bundle_without_draft_and_template(tiny_bundle, tmp_path, references):
    root = without(tiny_bundle, tmp_path, "draft", "chat")
    with pytest.raises(UsageError, match="no draft model") as caught:
        cospec.load(root, drafter="model", options=OPTIONS)
    assert "--draft" in caught.value.hint
    session = cospec.load(root, options=OPTIONS)
    assert session.drafter == "ngram"
    for prompt in PROMPTS[:5]:
        assert session.generate(prompt, max_tokens=NEW_TOKENS).tokens == references[prompt]
    with pytest.raises(UsageError, match="no chat template"):
        session.generate([{"role": "user", "content": "hi"}])


def test_an_unknown_drafter(tiny_bundle):
    with pytest.raises(UsageError, match="unknown drafter 'oracle'") as caught:
        cospec.load(tiny_bundle.root, drafter="oracle")
    assert "ngram" in caught.value.hint


def test_a_damaged_bundle_is_refused_unless_hashing_is_skipped(tiny_bundle, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(tiny_bundle.root, root)
    weights = root / "target/model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"target/model\.onnx\.data"):
        cospec.load(root)
    assert cospec.load(root, verify=False, options=OPTIONS).generate("x", max_tokens=2).tokens


def test_a_stream_that_was_dropped_leaves_a_clean_session(session, references):
    for taken in (0, 1, 3):
        stream = session.stream(PROMPTS[1], max_tokens=NEW_TOKENS)
        for _ in range(taken):
            next(stream)
        del stream
        gc.collect()
        prompt = PROMPTS[2 + taken]
        assert session.generate(prompt, max_tokens=NEW_TOKENS).tokens == references[prompt]


def test_a_stream_that_was_overtaken_says_so_instead_of_going_wrong(session, references):
    prompt = max(PROMPTS, key=lambda text: len(references[text]))
    first = session.stream(prompt, max_tokens=NEW_TOKENS, num_draft_tokens=0)
    begun = [next(first).tokens[0] for _ in range(3)]
    other = session.stream(PROMPTS[4], max_tokens=NEW_TOKENS)
    begun += next(first).tokens  # nothing has run yet
    assert begun == references[prompt][:4]
    next(other)
    with pytest.raises(UsageError, match="another generation began"):
        next(first)
    with pytest.raises(UsageError, match="failed or was closed"):
        first.completion()
    assert other.completion().tokens == references[PROMPTS[4]]


@pytest.mark.parametrize("failing", ["target", "draft"])
def test_a_backend_failure_leaves_a_usable_session(session, references, monkeypatch, failing):
    decoder = getattr(session.caches, failing)
    step, calls = decoder.step, []

    def fail_later(tokens, rows):
        calls.append(len(tokens))
        if len(calls) == 4:
            raise BackendError("the device is gone")
        return step(tokens, rows)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "step", fail_later)
        stream = session.stream(PROMPTS[5], max_tokens=NEW_TOKENS, num_draft_tokens=1)
        seen: list[int] = []
        with pytest.raises(BackendError, match="the device is gone"):
            seen.extend(token for piece in stream for token in piece.tokens)
    assert seen
    assert seen == references[PROMPTS[5]][: len(seen)]
    with pytest.raises(UsageError, match="failed or was closed"):
        stream.completion()
    found = session.generate(PROMPTS[5], max_tokens=NEW_TOKENS)
    assert found.tokens == references[PROMPTS[5]]


def test_a_second_generation_does_not_depend_on_the_first(session, sessions):
    fresh = sessions["none"].generate(PROMPTS[7], max_tokens=NEW_TOKENS).tokens
    for _ in range(3):
        assert session.generate(PROMPTS[7], max_tokens=NEW_TOKENS).tokens == fresh
        session.generate(PROMPTS[6], max_tokens=NEW_TOKENS)


def test_the_output_is_decoded_as_the_continuation_of_its_prompt(session, monkeypatch):
    contexts, stream = [], session.codec.stream

    def recorded(context=()):
        contexts.append(list(context))
        return stream(context)

    monkeypatch.setattr(session.codec, "stream", recorded)
    session.generate(PROMPTS[3], max_tokens=4)
    assert contexts == [session.codec.encode(PROMPTS[3])]
